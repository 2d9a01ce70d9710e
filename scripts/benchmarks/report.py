"""The tables of a comparison and of the stages."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.comparison import Measured
from benchmarks.tables import markdown

MB = 1e6
NOTHING = "–"


def comparison_table(results: Sequence[Measured], baseline: str, loop: str) -> str:
    """A row for each contender and N, with ratios to the baseline and to our own images one by one, at the same N.

    A contender that failed has a row of dashes, and a line below the table gives the reason.
    """
    at = {(one.name, one.n): one for one in results}
    baselines = list(dict.fromkeys([baseline, loop]))
    head = ["", "N", "images/s", "ms an image", "p50 ms", "p95 ms"]
    head += [f"× {name}" for name in baselines] + ["MB", "detections", "proposals"]
    rows: list[list[str]] = []
    reasons: dict[tuple[str, str], list[int]] = {}
    for one in results:
        if one.failed:
            reasons.setdefault((one.name, one.failed), []).append(one.n)
            rows.append([one.name, str(one.n), *["failed"], *[NOTHING] * (len(head) - 3)])
            continue
        cuts = statistics.quantiles(one.calls, n=20, method="inclusive") if len(one.calls) > 1 else one.calls * 19
        ratios = [_ratio(one, at.get((name, one.n))) for name in baselines]
        rows.append(
            [one.name, str(one.n), f"{one.n / one.seconds:.1f}", f"{1e3 * one.seconds / one.n:.1f}"]
            + [f"{1e3 * cuts[9]:.1f}", f"{1e3 * cuts[18]:.1f}", *ratios, f"{one.memory / MB:.0f}"]
            + [NOTHING if count is None else str(count) for count in one.found]
        )
    failures = [f"{name}, N = {', '.join(map(str, ns))}: {why}\n" for (name, why), ns in reasons.items()]
    return "\n".join([markdown(head, rows), *failures])


def stage_table(stages: Mapping[int, Mapping[str, float]]) -> str:
    """Milliseconds per image and share of the total: one row per stage, two columns per N."""
    if not stages:
        return ""
    head = ["ms an image"] + [cell for n in stages for cell in (f"N = {n}", "share")]
    rows = []
    for stage in next(iter(stages.values())):
        cells = [(f"{one[stage]:.2f}", f"{one[stage] / sum(one.values()):.0%}") for one in stages.values()]
        rows.append([stage, *(text for pair in cells for text in pair)])
    rows.append(["all", *(text for one in stages.values() for text in (f"{sum(one.values()):.2f}", "100%"))])
    return markdown(head, rows)


def _ratio(one: Measured, other: Measured | None) -> str:
    return NOTHING if other is None or other.failed else f"{one.times_as_fast_as(other):.2f}"
