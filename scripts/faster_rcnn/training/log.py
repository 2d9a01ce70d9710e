"""The logs of a training run: `losses.csv`, `validation.jsonl`, TensorBoard events, a plot, sheets of images."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes the logs of a training run. Resuming at iteration `start` drops the entries that will be written again."""

    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder
        if start == 0:
            # A run that was killed before its first checkpoint may have left events.
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        rows = _lines(folder / "losses.csv")[: start + 1] if start else []
        (folder / "losses.csv").write_text("".join(f"{row}\n" for row in rows))
        self._validations = folder / "validation.jsonl"
        kept = [line for line in _lines(self._validations) if _iteration(line) <= start]
        self._validations.write_text("".join(f"{line}\n" for line in kept))
        self._file = (folder / "losses.csv").open("a", newline="")
        self._writer = csv.writer(self._file)
        self._has_header = bool(rows)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def step(self, iteration: int, rate: float, losses: dict[str, float]) -> None:
        if not self._has_header:
            self._writer.writerow(["iteration", "learning_rate", *losses])
            self._has_header = True
        self._writer.writerow([iteration, f"{rate:.6g}", *(f"{value:.6g}" for value in losses.values())])
        for name, value in losses.items():
            self._board.add_scalar(f"training/{name}", value, iteration)
        self._board.add_scalar("learning_rate", rate, iteration)

    def validation(self, iteration: int, metrics: dict[str, Any], sheet: Image.Image) -> None:
        """Adds a line of metrics, and saves the sheet of images as `predictions/<iteration>.jpg`."""
        with self._validations.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **metrics}) + "\n")
        sheets = self.folder / "predictions"
        sheets.mkdir(exist_ok=True)
        sheet.save(sheets / f"{iteration:06d}.jpg", quality=88)
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"validation/{name}", value, iteration)
        self._board.add_image("predictions", np.asarray(sheet), iteration, dataformats="HWC")

    def flush(self) -> None:
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        plot_losses(self.folder)


def _iteration(line: str) -> float:
    """The iteration of a validation; infinite for a line that a crash cut short, so that it is dropped."""
    try:
        return int(json.loads(line)["iteration"])
    except json.JSONDecodeError:
        return math.inf


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def plot_losses(folder: Path) -> None:
    """Draws `losses.png`: each loss, smoothed over a fiftieth of the iterations, and its validation values."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with (folder / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    validations = [json.loads(line) for line in _lines(folder / "validation.jsonl")]
    iterations = np.array([int(row["iteration"]) for row in rows])
    window = max(1, len(rows) // 50)
    figure, axes = plt.subplots(figsize=(9, 5))
    for name in list(rows[0])[2:]:
        values = np.array([float(row[name]) for row in rows])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(iterations[window - 1 :], smooth, label=name)
        points = [(one["iteration"], one[f"loss_{name}"]) for one in validations if one.get(f"loss_{name}") is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o--", color=line.get_color(), label=f"{name}, validation")
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "losses.png", dpi=110)
    plt.close(figure)
