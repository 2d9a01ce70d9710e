"""Plots of precision over recall, and of the recall of proposals (Ren et al. 2015, figure 4)."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faster_rcnn.evaluation.recall import MEASURES
from faster_rcnn.files import write_figure

COLUMNS = 4
NAMES = {"R@0.5": "recall at IoU 0.5", "R@0.7": "recall at IoU 0.7", "AR": "average recall"}


def plot_precision_recall(voc: dict[str, Any], path: Path) -> None:
    """Precision over recall at IoU 0.5, one panel per class with its AP; `voc` is the result of `voc_ap`.

    The line shows the best precision at each recall or any higher one; the area under it is the AP. Each dot is a
    detection.
    """
    curves = voc["VOC_curves"]
    figure, panels = _grid(max(1, len(curves)))
    for panel, (name, curve) in zip(panels, curves.items(), strict=False):
        recall = np.concatenate([[0.0], curve.recall])
        envelope = np.maximum.accumulate(np.concatenate([curve.precision[:1], curve.precision])[::-1])[::-1]
        area, eleven = voc["VOC_AP_by_class"][name], voc["VOC_AP_11_by_class"][name]
        if len(curve.recall):
            panel.plot(recall, envelope, drawstyle="steps-pre", label=f"AP {area:.3f} (11 points {eleven:.3f})")
            panel.plot(curve.recall, curve.precision, ".", markersize=2, alpha=0.5)
            panel.legend(loc="lower left", fontsize=8)
        panel.set(title=name if len(curve.recall) else f"{name}: nothing detected", xlabel="recall")
        panel.set(ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    write_figure(path, figure, 100)


def plot_recall(sources: dict[str, dict[str, Any]], path: Path) -> None:
    """Recall over IoU, one panel per number of proposals; then recall over their number, one panel per measure.

    sources: results of `proposal_recall` by the name of the source, all for the same numbers of proposals.
    """
    numbers = list(next(iter(sources.values()))["by_number"])
    figure, panels = _grid(len(numbers) + len(MEASURES))
    for panel, number in zip(panels, numbers, strict=False):
        for name, result in sources.items():
            panel.plot(result["by_iou"]["iou"], result["by_iou"][number], marker=".", label=name)
        panel.set(title=f"{number} proposals", xlabel="IoU", ylabel="recall", ylim=(0, 1.02))
    for panel, measure in zip(panels[len(numbers) :], MEASURES, strict=False):
        for name, result in sources.items():
            panel.plot(result["curve"]["number"], result["curve"][measure], marker=".", label=name)
        panel.set(title=NAMES[measure], xlabel="proposals per image", xscale="log", ylim=(0, 1.02))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sources), frameon=False)
    write_figure(path, figure, 100)


def _grid(number: int) -> tuple[Figure, list[Axes]]:
    """A figure with `number` panels, independent of pyplot's global state."""
    columns = min(COLUMNS, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[number:]:
        panel.remove()
    for panel in panels[:number]:
        panel.grid(alpha=0.3)
    return figure, panels[:number]
