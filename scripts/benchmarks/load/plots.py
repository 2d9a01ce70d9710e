"""Plots for each contender: images per second and p99 by clients, and the rate answered by the rate offered."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.load.load_tables import LONE, RAW, Turns
from benchmarks.load.turn_figures import Number, Turn, median


def plot(closed: Turns, opened: Turns, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    rates, tails, overload = figure.subplots(1, 3)
    _lines(rates, closed, lambda turn: turn.rate)
    served = {key: own for key, own in closed.items() if key[0] != RAW}  # no client waits for the raw pipeline
    _lines(tails, served, lambda turn: None if turn.p99 is None else 1e3 * turn.p99)
    for panel, label in ((rates, "images/s"), (tails, "p99 ms")):
        panel.set_xscale("log", base=2)
        clients = sorted({load for _, load in closed})
        panel.set_xticks(clients, [f"{n:.0f}" for n in clients])
        panel.set(xlabel="clients", ylabel=label)
    rates.set_ylim(bottom=0)
    tails.set_yscale("log")
    _lines(overload, opened, lambda turn: turn.rate)
    highest = max(offered for _, offered in opened)
    overload.plot([0, highest], [0, highest], color="grey", linestyle=":", label="everything offered")
    overload.set(xlabel="offered, images/s", ylabel="answered, images/s")
    overload.set_xlim(left=0)
    overload.set_ylim(bottom=0)
    for panel in (rates, overload):
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.savefig(path, dpi=100)


def _lines(panel: Axes, turns: Turns, of: Callable[[Turn], Number]) -> None:
    for name in dict.fromkeys(name for name, _ in turns):
        points = [(load, median(own, of)) for (contender, load), own in turns.items() if contender == name]
        if name != LONE and any(value is not None for _, value in points):
            panel.plot(*zip(*points, strict=True), marker="o", label=name)
