"""Images per second by N for each contender, and how the time of our graph divides into stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.comparison import Measured


def plot(results: Sequence[Measured], stages: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Writes a PNG with a panel for each. A contender that failed has no point."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    rates, parts = figure.subplots(1, 2)
    _plot_rates(rates, results)
    _plot_stages(parts, stages)
    figure.savefig(path, dpi=100)


def _plot_rates(panel: Axes, results: Sequence[Measured]) -> None:
    for name in dict.fromkeys(one.name for one in results):
        points = [(one.n, one.n / one.seconds) for one in results if one.name == name and not one.failed]
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", label=name)
    panel.set_xscale("log", base=2)
    batches = sorted({one.n for one in results})
    panel.set_xticks(batches, [str(n) for n in batches])
    panel.set(xlabel="N", ylabel="images/s")
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _plot_stages(panel: Axes, stages: Mapping[int, Mapping[str, float]]) -> None:
    if not stages:
        panel.set_axis_off()
        return
    bottom = [0.0] * len(stages)
    names = [f"N = {n}" for n in stages]
    for stage in next(iter(stages.values())):
        heights = [max(0.0, one[stage]) for one in stages.values()]
        panel.bar(names, heights, bottom=bottom, label=stage)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    panel.set_ylabel("ms an image")
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
