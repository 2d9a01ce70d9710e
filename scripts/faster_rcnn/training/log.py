"""The logs of a training run: `losses.csv`, `validation.jsonl`, TensorBoard events, a plot, sheets of images."""

import contextlib
import csv
import io
import json
import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from faster_rcnn.files import in_words, write_figure, write_image, write_text

ROWS_HELD = 10_000  # characters of losses.csv that wait to be written


class RunLog:
    """Writes the logs of a training run. Resuming at iteration `start` drops the entries that will be written again."""

    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder
        if start == 0:
            # A run that was killed before its first checkpoint may have left events.
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        rows = _lines(folder / "losses.csv")[: start + 1] if start else []
        write_text(folder / "losses.csv", "".join(f"{row}\n" for row in rows))
        self._validations = folder / "validation.jsonl"
        kept = [line for line in _lines(self._validations) if _iteration(line) <= start]
        write_text(self._validations, "".join(f"{line}\n" for line in kept))
        self._rows = io.StringIO(newline="")
        self._writer = csv.writer(self._rows)
        self._has_header = bool(rows)
        with self._events():
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)
        self._previous_hook = threading.excepthook
        threading.excepthook = self._leave_faults_to_this_thread

    def step(self, iteration: int, rate: float, losses: dict[str, float]) -> None:
        if not self._has_header:
            self._writer.writerow(["iteration", "learning_rate", *losses])
            self._has_header = True
        self._writer.writerow([iteration, f"{rate:.6g}", *(f"{value:.6g}" for value in losses.values())])
        with self._events():
            for name, value in losses.items():
                self._board.add_scalar(f"training/{name}", value, iteration)
            self._board.add_scalar("learning_rate", rate, iteration)
        if self._rows.tell() > ROWS_HELD:
            self._write_rows()

    def validation(self, iteration: int, metrics: dict[str, Any], sheet: Image.Image) -> None:
        """Adds a line of metrics, and saves the sheet of images as `predictions/<iteration>.jpg`."""
        append(self._validations, json.dumps({"iteration": iteration, **metrics}) + "\n")
        sheets = self.folder / "predictions"
        sheets.mkdir(exist_ok=True)
        write_image(sheets / f"{iteration:06d}.jpg", sheet, 88)
        with self._events():
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"validation/{name}", value, iteration)
            self._board.add_image("predictions", np.asarray(sheet), iteration, dataformats="HWC")

    def flush(self) -> None:
        self._write_rows()
        with self._events():
            self._board.flush()

    def close(self) -> None:
        """Writes what is left, and the plot."""
        try:
            self._write_rows()
            with self._events():
                self._board.close()
            plot_losses(self.folder)
        finally:
            threading.excepthook = self._previous_hook

    def abandon(self) -> None:
        """Closes the log of a run that has failed. Another fault, such as a disk that is still full, is not raised."""
        with contextlib.suppress(OSError):
            self.close()

    def _write_rows(self) -> None:
        append(self.folder / "losses.csv", self._rows.getvalue())
        self._rows.seek(0)
        self._rows.truncate()

    @contextlib.contextmanager
    def _events(self) -> Iterator[None]:
        """TensorBoard's errors name no file."""
        try:
            yield
        except OSError as error:
            raise OSError(in_words(error, self.folder / "tensorboard")) from error

    def _leave_faults_to_this_thread(self, fault: threading.ExceptHookArgs) -> None:
        """TensorBoard raises an error of its own thread here too, so its traceback need not be printed there."""
        of_tensorboard = type(fault.thread).__module__.startswith("tensorboard")
        if not (of_tensorboard and isinstance(fault.exc_value, OSError)):
            self._previous_hook(fault)


def _iteration(line: str) -> float:
    """The iteration of a validation; infinite for a line that a crash cut short, so that it is dropped."""
    try:
        return int(json.loads(line)["iteration"])
    except json.JSONDecodeError:
        return math.inf


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def append(path: Path, text: str) -> None:
    """Appends whole lines to a file. If they do not fit, none of them stays, and OSError names the file."""
    content = text.encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            file.truncate(before)
            raise OSError(in_words(error, path, len(text))) from error


def plot_losses(folder: Path) -> None:
    """Draws `losses.png`: each loss, smoothed over a fiftieth of the iterations, and its validation values."""
    with (folder / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    validations = [json.loads(line) for line in _lines(folder / "validation.jsonl")]
    iterations = np.array([int(row["iteration"]) for row in rows])
    window = max(1, len(rows) // 50)
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots()
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
    write_figure(folder / "losses.png", figure, 110)
