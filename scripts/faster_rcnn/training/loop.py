"""The training loop: batches to a trained detector, with its log, checkpoints, validation and images."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.loader import Batch, Loading, Share, training_batches
from faster_rcnn.detector.checkpoint import BEST, NAME, read_checkpoint, save_state
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.freezing import freeze_before
from faster_rcnn.detector.losses import total
from faster_rcnn.training.divergence import DivergenceWatch
from faster_rcnn.training.log import RunLog
from faster_rcnn.training.objectives import Objective
from faster_rcnn.training.options import TrainingOptions, build_optimiser, learning_rate, set_rate
from faster_rcnn.training.processes import (
    mean_over_processes,
    processes,
    rank,
    same_canvas,
    share_statistics,
    wait_for_all,
)
from faster_rcnn.training.tasks import Task, freeze_all_but
from faster_rcnn.training.validation import validate


@dataclass
class _Run:
    """What a run has besides its detector and optimiser, and what its checkpoint keeps of it."""

    watch: DivergenceWatch
    began: float
    done: int = 0
    best: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def train(
    detector: FasterRCNN,
    task: Task,
    training: Dataset,
    validation: Dataset,
    options: TrainingOptions,
    folder: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains `detector` in place and returns its last validation metrics and the seconds that all of the run took.

    In `folder`: `checkpoint.pt`, the last state; `best.pt`, the detector with the highest `task.chosen_by`;
    `losses.csv`, a row an iteration; `validation.jsonl`, a line a validation; `predictions/`, a sheet of images a
    validation; `losses.png`; `tensorboard/`. Started by `torchrun`, every process takes its share of each batch and
    the first one writes.
    Raises ValueError if there is nothing left to resume or a batch cannot be dealt out, FloatingPointError when the
    training has diverged; the last checkpoint is from before.
    """
    parts = _Parts(detector, task, options)
    run = _Run(DivergenceWatch(options.warm_up), time.monotonic())
    if resume:
        _restore(run, parts, folder, options)
    share = Share(rank(), processes(), options.accumulate)
    loading = Loading(options.batch_size, options.seed, options.workers, options.augmentations, options.with_difficult)
    stride = detector.backbone.stride
    batches = training_batches(training, detector.config.resize, stride, loading, run.done, share)
    first = rank() == 0
    log = RunLog(folder, run.done) if first else None
    progress = tqdm(
        range(run.done, options.iterations),
        initial=run.done,
        total=options.iterations,
        unit="batch",
        desc=f"training {task.name}",
        disable=not first,
    )
    try:
        for iteration in progress:
            rate = learning_rate(options, iteration)
            losses = parts.step(iteration, rate, batches, run.watch)
            run.done = iteration + 1
            if log is not None:
                log.step(iteration, rate, losses)
                if iteration % 20 == 0:
                    progress.set_postfix({"loss": f"{sum(losses.values()):.3f}", "rate": f"{rate:.2g}"})
            last = run.done == options.iterations
            if run.done % options.validate_every == 0 or last:
                if log is not None:
                    _validate(run, parts, validation, folder, log, progress)
                wait_for_all()
            # after the validation, so that none is lost
            if log is not None and (run.done % options.checkpoint_every == 0 or last):
                log.flush()
                _save(run, parts, folder)
    finally:
        if log is not None:
            log.close()
    wait_for_all()
    return {**run.metrics, "seconds": round(run.seconds)}


class _Parts:
    """The detector, what is kept as it is in it, and what moves the rest."""

    def __init__(self, detector: FasterRCNN, task: Task, options: TrainingOptions) -> None:
        self.detector = detector
        self.task = task
        self.options = options
        self.device = detector.mean.device
        detector.backbone.to(memory_format=torch.channels_last)
        self.kept: list[nn.Module] = freeze_all_but(detector, task.trained)
        if options.trainable_from is not None:
            self.kept += freeze_before(detector, options.trainable_from)
        if options.frozen_statistics:
            self.kept += _freeze_normalisations(detector.backbone)
        share_statistics(detector)
        self.optimiser = build_optimiser(detector, options)
        objective: nn.Module = Objective(detector, task.losses, options.mixed_precision)
        if processes() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            # a pyramid has levels that only the RPN looks at
            unused = "rpn" not in task.trained
            objective = DistributedDataParallel(
                objective, device_ids=devices, broadcast_buffers=False, find_unused_parameters=unused
            )
        self.objective = objective

    def step(self, iteration: int, rate: float, batches: Iterator[Batch], watch: DivergenceWatch) -> dict[str, float]:
        """One step down the gradient of one batch; its losses, the mean over all processes."""
        options = self.options
        self.detector.train()
        for module in self.kept:
            module.eval()
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        parts: list[dict[str, Tensor]] = []
        for part in range(options.accumulate):
            torch.manual_seed(_seed(options.seed, iteration, rank(), part))  # for dropout
            batch = same_canvas(next(batches).to(self.device))
            with self._alone(part < options.accumulate - 1):
                losses = self.objective(batch)
                (total(losses) / options.accumulate).backward()
            parts.append({name: loss.detach() for name, loss in losses.items()})
        means = torch.stack([torch.stack(list(part.values())) for part in parts]).mean(dim=0)
        means = mean_over_processes(means)
        losses_here = dict(zip(parts[0], means.tolist(), strict=True))
        watch.check_losses(iteration, rate, losses_here)
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), options.clip_norm)
        watch.check_gradient(iteration, rate, norm)
        self.optimiser.step()
        return losses_here

    def _alone(self, more_to_come: bool) -> Any:
        """Gradients are exchanged once a batch, with its last part."""
        if more_to_come and isinstance(self.objective, DistributedDataParallel):
            return self.objective.no_sync()
        return nullcontext()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _freeze_normalisations(module: nn.Module) -> list[nn.Module]:
    """Batch normalisations as they were given, since a batch of detection has too few images to measure anew."""
    found: list[nn.Module] = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    for one in found:
        one.requires_grad_(False)
    return found


def _restore(run: _Run, parts: _Parts, folder: Path, options: TrainingOptions) -> None:
    state = read_checkpoint(folder)
    if state["iteration"] >= options.iterations:
        raise ValueError(
            f"{folder} has done its {state['iteration']} iterations; raise --iterations to train it further"
        )
    parts.detector.load_state_dict(state["detector"])
    parts.optimiser.load_state_dict(state["optimiser"])
    run.done, run.best, run.metrics = state["iteration"], state["best"], state["metrics"]
    run.watch.state = state["watch"]
    run.began -= state["seconds"]


def _save(run: _Run, parts: _Parts, folder: Path) -> None:
    save_state(
        folder / NAME,
        parts.detector,
        parts.task.name,
        run.done,
        optimiser=parts.optimiser.state_dict(),
        best=run.best,
        metrics=run.metrics,
        watch=run.watch.state,
        seconds=run.seconds,
    )


def _validate(run: _Run, parts: _Parts, validation: Dataset, folder: Path, log: RunLog, progress: tqdm) -> None:
    task = parts.task
    run.metrics, sheet = validate(parts.detector, task, validation, parts.options)
    log.validation(run.done, run.metrics, sheet)
    reached = run.metrics[task.chosen_by]
    shown = {name: run.metrics.get(name) for name in ("AP", "AP50", "R@0.5", "AR", "loss") if name in run.metrics}
    progress.write(f"{run.done}: " + "  ".join(f"{name} {value}" for name, value in shown.items()))
    if run.best is None or (reached is not None and reached > run.best):
        run.best = reached
        save_state(folder / BEST, parts.detector, task.name, run.done, metrics=run.metrics)
