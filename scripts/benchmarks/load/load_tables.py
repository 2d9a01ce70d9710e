"""The tables of a load, closed loop and open loop, and the lines that explain them."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.load.turn_figures import Number, Turn, failures, median, ratio
from benchmarks.report import MB, NOTHING
from benchmarks.tables import markdown

Turns = Mapping[
    tuple[str, float], Sequence[Turn]
]  # by contender and load: number of clients, or images offered per second

SERVICE, RAW, LONE = "service", "raw pipeline", "raw, one by one"


def closed_table(turns: Turns) -> str:
    """A row for each contender and number of clients.

    cores: number kept busy;  × raw: images/s divided by the raw pipeline's in the same round;  CPU × raw: processor
    time per image, divided likewise.
    """
    against_raw = any(name == RAW for name, _ in turns)
    head = ["", "clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "failed", "CPU ms per image", "cores", "MB"]
    rows = []
    for (name, clients), own in turns.items():
        row = [name, str(int(clients)), _text(median(own, lambda turn: turn.rate))]
        row += [_ms(median(own, of)) for of in (lambda turn: turn.p50, lambda turn: turn.p95, lambda turn: turn.p99)]
        row += [_failed(own), _ms(median(own, lambda turn: turn.cpu)), _text(median(own, lambda turn: turn.cores), 2)]
        row += [_mb(median(own, lambda turn: turn.memory))]
        if against_raw:
            raw = turns[RAW, clients]
            row += [_text(ratio(own, raw, lambda turn: turn.rate), 2), _text(ratio(own, raw, lambda turn: turn.cpu), 2)]
        rows.append(row)
    return markdown(head + (["× raw", "CPU × raw"] if against_raw else []), rows)


def open_table(turns: Turns) -> str:
    """A row for each contender and offered rate."""
    head = ["", "offered/s", "answered/s", "p50 ms", "p99 ms", "refused", "refusal p50 ms", "refusal p99 ms", "failed"]
    head += ["CPU ms per image", "MB before", "most", "after", "back to normal s"]
    rows = []
    for (name, offered), own in turns.items():
        row = [name, f"{offered:.0f}", _text(median(own, lambda turn: turn.rate))]
        row += [_ms(median(own, of)) for of in (lambda turn: turn.p50, lambda turn: turn.p99)]
        refused = median(own, lambda turn: turn.refused)
        row += [NOTHING if refused is None else f"{refused:.0%}"]
        row += [_ms(median(own, of)) for of in (lambda turn: turn.refusal_p50, lambda turn: turn.refusal_p99)]
        row += [_failed(own), _ms(median(own, lambda turn: turn.cpu))]
        memory = (lambda turn: turn.memory_before, lambda turn: turn.memory, lambda turn: turn.memory_after)
        row += [_mb(median(own, of)) for of in memory]
        rows.append([*row, _text(median(own, lambda turn: turn.back), 2)])
    return markdown(head, rows)


def overload_lines(closed: Turns, opened: Turns) -> str:
    """For each contender: its rate at the highest offered load, as a share of its peak in the closed loop."""
    highest = max(offered for _, offered in opened)
    lines = []
    for name in dict.fromkeys(name for name, _ in opened):
        peak = max(
            median(turns, lambda turn: turn.rate) or 0.0
            for (contender, _), turns in closed.items()
            if contender == name
        )
        rate = median(opened[name, highest], lambda turn: turn.rate) or 0.0
        share = rate / peak if peak else 0.0
        lines.append(f"{name}: at {highest:.0f}/s offered it answers {share:.0%} of its peak of {peak:.1f}/s.\n")
    return "".join(lines)


def lone_line(turns: Turns) -> str:
    """How much longer a single client waits than decoding and inference take; empty if not measured."""
    if (LONE, 1) not in turns:
        return ""
    pairs = zip(turns[SERVICE, 1], turns[LONE, 1], strict=True)
    beyond = [ours.p50 - alone.p50 for ours, alone in pairs if ours.p50 and alone.p50]
    if not beyond:
        return ""
    waits = _ms(statistics.median(beyond))
    return f"One client waits {waits} ms (p50) longer than decoding and inference take with every core.\n"


def failure_lines(turns: Turns) -> str:
    """The failures by outcome: one line for each contender and load that has any."""
    return "".join(
        f"{name} at {load:.0f}: {', '.join(f'{n} × {what}' for what, n in failed.most_common())}\n"
        for (name, load), own in turns.items()
        if (failed := failures(own))
    )


def generator_line(turns: Turns) -> str:
    """The processor time that the clients use per image."""
    taken = median([turn for own in turns.values() for turn in own], lambda turn: turn.generator_cpu)
    return f"The clients, one process on the same cores, use {_ms(taken, 2)} ms of processor time per image.\n"


def _failed(turns: Sequence[Turn]) -> str:
    return str(failures(turns).total())


def _text(value: Number, decimals: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{decimals}f}"


def _ms(seconds: Number, decimals: int = 1) -> str:
    return NOTHING if seconds is None else f"{1e3 * seconds:.{decimals}f}"


def _mb(size: Number) -> str:
    return NOTHING if size is None else f"{size / MB:.0f}"
