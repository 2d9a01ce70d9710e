"""The training loop: batches to a trained detector, with its log, checkpoints, validation and pictures."""

import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.loader import Batch, training_batches
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.drawing import TRUTH, contact_sheet, draw_boxes, draw_prediction
from faster_rcnn.evaluation import evaluate, torch_predictor
from faster_rcnn.losses import DIVERGED_REMEDY, total
from faster_rcnn.training.checkpoint import read_checkpoint, restore, save_checkpoint

PICTURES = 12  # on a sheet of predictions
SHOWN_SCORE = 0.5


@dataclass(frozen=True)
class TrainingOptions:
    """One run. Times are in iterations; an iteration is one batch."""

    iterations: int
    batch_size: int
    learning_rate: float
    warm_up: int  # the rate grows linearly over these
    optimiser: str = "sgd"  # a key of OPTIMISERS
    clip_norm: float = 10.0  # the norm of all gradients together; simple runs stay below, a bad batch does not
    validate_every: int = 1000
    validation_pictures: int = 200
    checkpoint_every: int = 250
    workers: int = 1
    seed: int = 0
    mixed_precision: bool = True


def learning_rate(options: TrainingOptions, iteration: int) -> float:
    """The rate at an iteration: a linear warm-up, then half a cosine to zero."""
    if iteration < options.warm_up:
        return options.learning_rate * (iteration + 1) / options.warm_up
    done = (iteration - options.warm_up) / max(1, options.iterations - options.warm_up)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


ComputeLosses = Callable[[FasterRCNN, Batch], dict[str, Tensor]]


def train(
    detector: FasterRCNN,
    compute_losses: ComputeLosses,
    training: Dataset,
    validation: Dataset,
    options: TrainingOptions,
    folder: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains `detector` in place and returns its last validation metrics and the seconds that all of the run took.

    In `folder`: `checkpoint.pt`; `losses.csv`, a row an iteration; `validation.jsonl`, a line a validation;
    `predictions/`, a sheet of pictures a validation; `losses.png`.
    Raises ValueError if there is nothing left to resume, FloatingPointError when the losses are no longer finite; the
    last checkpoint is from before.
    """
    device = detector.mean.device
    detector.backbone.to(memory_format=torch.channels_last)
    optimiser = _optimiser(detector, options)
    start, seconds = 0, 0.0
    if resume:
        state = read_checkpoint(folder)
        restore(state, detector, optimiser)
        start, seconds = state["iteration"], state["seconds"]
        if start >= options.iterations:
            raise ValueError(f"{folder} has done its {start} iterations; raise --iterations to train it further")
    began = time.monotonic() - seconds
    batches = training_batches(
        training,
        detector.config.resize,
        detector.backbone.stride,
        options.batch_size,
        options.seed,
        start,
        options.workers,
    )
    log = _LossLog(folder / "losses.csv", keep=start)
    _drop_later_validations(folder / "validation.jsonl", start)
    metrics: dict[str, Any] = {}
    detector.train()
    progress = tqdm(
        range(start, options.iterations), initial=start, total=options.iterations, unit="batch", desc="training"
    )
    for iteration in progress:
        rate = learning_rate(options, iteration)
        for group in optimiser.param_groups:
            group["lr"] = rate
        losses = compute_losses(detector, next(batches).to(device))
        loss = total(losses)
        _step(detector, optimiser, loss, options.clip_norm)
        log.write(iteration, rate, losses)
        if iteration % 20 == 0:
            progress.set_postfix({"loss": f"{loss.item():.3f}", "rate": f"{rate:.4f}"})
        done = iteration + 1
        if done % options.validate_every == 0 or done == options.iterations:
            metrics = _validate(detector, validation, options, folder, done)
            progress.write(f"{done}: AP {metrics['AP']}  AP50 {metrics['AP50']}  AP75 {metrics['AP75']}")
        if done % options.checkpoint_every == 0 or done == options.iterations:  # last, so that no validation is lost
            log.flush()
            save_checkpoint(folder, done, time.monotonic() - began, detector, optimiser)
    log.close()
    plot_losses(folder / "losses.csv", folder / "losses.png")
    return {**metrics, "seconds": round(time.monotonic() - began)}


OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, float], float]] = {
    # class, options, weight decay
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, 0.0005),  # both papers
    # From scratch it needs fewer iterations: head_classification is at 0.61 after 300, with SGD at 0.02 after 700.
    "adamw": (torch.optim.AdamW, {}, 0.05),
}


def _optimiser(detector: FasterRCNN, options: TrainingOptions) -> torch.optim.Optimizer:
    """Biases and normalisations are not decayed (the reference code decays no bias)."""
    kind, details, weight_decay = OPTIMISERS[options.optimiser]
    decayed = [parameter for parameter in detector.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in detector.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return kind(groups, lr=options.learning_rate, **details)


def _step(detector: FasterRCNN, optimiser: torch.optim.Optimizer, loss: Tensor, clip_norm: float) -> None:
    """One step down the gradient. Raises FloatingPointError before it if the gradient is not finite."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(detector.parameters(), clip_norm)
    if not bool(torch.isfinite(norm)):  # a finite loss may have an infinite gradient; no such step is ever saved
        raise FloatingPointError(f"training has diverged (gradients of norm {norm.item()}); {DIVERGED_REMEDY}")
    optimiser.step()


def _validate(
    detector: FasterRCNN, validation: Dataset, options: TrainingOptions, folder: Path, iteration: int
) -> dict[str, Any]:
    predict = torch_predictor(detector)
    try:
        metrics = evaluate(validation, predict, options.validation_pictures)
    except ValueError:  # no object in these pictures: nothing to measure, but no reason to end a run
        metrics = dict.fromkeys(("AP", "AP50", "AP75"))
    with (folder / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": iteration, "time": round(time.time()), **metrics}) + "\n")
    pictures = []
    for index in range(min(PICTURES, len(validation))):
        sample = validation[index]
        picture = draw_boxes(sample.image, sample.boxes, [""] * len(sample.boxes), [TRUTH] * len(sample.boxes))
        pictures.append(draw_prediction(np.asarray(picture), predict(sample), validation.labels, SHOWN_SCORE))
    sheets = folder / "predictions"
    sheets.mkdir(exist_ok=True)
    contact_sheet(pictures).save(sheets / f"{iteration:06d}.jpg", quality=88)
    return metrics


def _drop_later_validations(path: Path, start: int) -> None:
    """Leaves the lines of validations up to iteration `start`; a resumed run writes the later ones again."""
    if path.is_file():
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["iteration"] <= start))


class _LossLog:
    """`losses.csv`: iteration, learning rate, every loss. A resumed run drops the rows that it will write again."""

    def __init__(self, path: Path, keep: int) -> None:
        rows = path.read_text().splitlines()[: keep + 1] if keep and path.is_file() else []
        path.write_text("".join(f"{row}\n" for row in rows))
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file)
        self._has_header = bool(rows)

    def write(self, iteration: int, rate: float, losses: dict[str, Tensor]) -> None:
        if not self._has_header:
            self._writer.writerow(["iteration", "learning_rate", *losses])
            self._has_header = True
        self._writer.writerow([iteration, f"{rate:.6g}", *(f"{float(loss.detach()):.6g}" for loss in losses.values())])

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def plot_losses(log: Path, picture: Path) -> None:
    """Draws every loss of a log over the iterations, smoothed over a fiftieth of the run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    iterations = np.array([int(row["iteration"]) for row in rows])
    window = max(1, len(rows) // 50)
    figure, axes = plt.subplots(figsize=(9, 5))
    for name in list(rows[0])[2:]:
        values = np.array([float(row[name]) for row in rows])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(iterations[window - 1 :], smooth, label=name)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
