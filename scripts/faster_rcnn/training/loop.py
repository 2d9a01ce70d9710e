"""The training loop: from batches to a trained detector, with its log, checkpoints and validation."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from signal import SIGTERM
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
from faster_rcnn.training.launcher import processes_on_this_machine
from faster_rcnn.training.log import RunLog
from faster_rcnn.training.objectives import LossModule, Objective
from faster_rcnn.training.optimiser import build_optimiser, learning_rate, set_rate
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.processes import (
    copy_from_first,
    file_of_first,
    mean_over_processes,
    processes,
    rank,
    same_canvas,
    share_statistics,
    wait_for_all,
)
from faster_rcnn.training.stopping import Stopped, StopRequest, stop_after_iteration
from faster_rcnn.training.validation import validate

SHOWN_METRICS = ("AP", "AP50", "R@0.5", "AR", "loss")  # printed after each validation
POSTFIX_EVERY = 20  # iterations between updates of the numbers next to the progress bar
SECONDS_BETWEEN_LINES = 10  # between two states of the progress bar in a file, which keeps all of them


def train(
    detector: FasterRCNN,
    objective: Objective,
    training: Dataset,
    validation: Dataset,
    options: TrainingOptions,
    folder: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains `detector` in place; returns the last validation's metrics and the `seconds` of the whole training run.

    Writes into `folder`: `checkpoint.pt`, the last state; `best.pt`, the detector with the highest
    `objective.chosen_by`; `losses.csv`, a row per iteration; `validation.jsonl`, a line per validation; `predictions/`,
    a sheet of images per validation; `losses.png`; `tensorboard/`. Under `torchrun` each process computes its share
    of every batch and validates its share of the images, and only the first one reads and writes the folder.
    Raises ValueError if no iterations are left to resume or a batch cannot be divided, FloatingPointError if the
    training has diverged; the last checkpoint is then from before the divergence. Raises Stopped after SIGTERM or
    Ctrl-C to any of the processes, once the iteration is finished and saved; in all of them after the same iteration.
    """
    trainer = _Trainer(detector, objective, options)
    if resume:
        trainer.restore(folder)
    share = Share(rank(), processes(), options.accumulate, processes_on_this_machine())
    loading = Loading(options.batch_size, options.seed, options.workers, options.augmentations, options.with_difficult)
    stride = detector.backbone.stride
    batches = training_batches(training, detector.config.resize, stride, loading, trainer.done, share)
    writes = rank() == 0
    log = RunLog(folder, trainer.done) if writes else None
    bar = tqdm(
        range(trainer.done, options.iterations),
        initial=trainer.done,
        total=options.iterations,
        unit="batch",
        desc=f"training {objective.name}",
        disable=not writes,
        mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
    )
    try:
        with stop_after_iteration() as stop:
            for iteration in bar:
                rate = learning_rate(options, iteration)
                losses = trainer.step(iteration, rate, batches, stop)
                last = trainer.done == options.iterations
                if log is not None:
                    log.step(iteration, rate, losses)
                    _show(bar, iteration, rate, losses)
                if trainer.done % options.validate_every == 0 or last:
                    trainer.validate(validation, folder, log, bar)
                # Save after the validation of the same iteration, so that resuming does not skip that validation.
                stopped = stop.is_due and not last
                if log is not None and (trainer.done % options.checkpoint_every == 0 or last or stopped):
                    log.flush()
                    trainer.save(folder)
                if stopped:
                    wait_for_all()  # torchrun would kill the first process, which saves, when the others have ended
                    raise Stopped(stop.number or SIGTERM, f"stopped after iteration {trainer.done}, which is saved")
    except BaseException:
        if log is not None:
            log.abandon()
        raise
    if log is not None:
        log.close()
    wait_for_all()
    return {**trainer.metrics, "seconds": round(trainer.seconds)}


def _show(bar: tqdm, iteration: int, rate: float, losses: dict[str, float]) -> None:
    if iteration % POSTFIX_EVERY == 0:
        bar.set_postfix({"loss": f"{sum(losses.values()):.3f}", "rate": f"{rate:.2g}"}, refresh=False)


class _Trainer:
    """The detector, its frozen modules and its optimiser, and the progress of the training run."""

    def __init__(self, detector: FasterRCNN, objective: Objective, options: TrainingOptions) -> None:
        self.detector = detector
        self.objective = objective
        self.options = options
        self.device = detector.mean.device
        copy_from_first(detector)  # the others have not read the weights that training starts from
        detector.backbone.to(memory_format=torch.channels_last)
        self.frozen: list[nn.Module] = objective.freeze_other_parts(detector)
        if options.trainable_from is not None:
            self.frozen += freeze_before(detector, options.trainable_from)
        if options.frozen_statistics:
            self.frozen += _freeze_normalisations(detector.backbone)
        share_statistics(detector)
        self.optimiser = build_optimiser(detector, options)
        self.loss_module = _parallel(LossModule(detector, objective.losses, options.mixed_precision), objective)
        self.watch = DivergenceWatch(options.warm_up)
        self.began = time.monotonic()
        self.done = 0  # iterations
        self.best: float | None = None  # the highest value of objective.chosen_by
        self.metrics: dict[str, Any] = {}  # of the last validation

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def step(self, iteration: int, rate: float, batches: Iterator[Batch], stop: StopRequest) -> dict[str, float]:
        """Trains on one batch and returns its losses, the mean over all processes, which agree on `stop` with them."""
        self.detector.train()
        for module in self.frozen:
            module.eval()
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._add_gradients(iteration, batches, stop)
        self.watch.check_losses(iteration, rate, losses)
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), self.options.clip_norm)
        self.watch.check_gradient(iteration, rate, norm)
        self.optimiser.step()
        self.done = iteration + 1
        return losses

    def _add_gradients(self, iteration: int, batches: Iterator[Batch], stop: StopRequest) -> dict[str, float]:
        """Accumulates the gradients of the micro-batches of one batch and returns the batch's losses."""
        micro_batches = self.options.accumulate
        collected: list[dict[str, Tensor]] = []
        for place in range(micro_batches):
            torch.manual_seed(_seed(self.options.seed, iteration, rank(), place))  # for dropout
            batch = same_canvas(next(batches).to(self.device))
            with self._exchange_of_gradients(place == micro_batches - 1):
                losses = self.loss_module(batch)
                (total(losses) / micro_batches).backward()
            collected.append({name: loss.detach() for name, loss in losses.items()})
        means = torch.stack([torch.stack(list(losses.values())) for losses in collected]).mean(dim=0)
        if processes() > 1:
            wanted = means.new_tensor([float(stop.number is not None)])
            *values, share = mean_over_processes(torch.cat([means, wanted])).tolist()
            stop.is_wanted_by_any = share > 0
        else:
            values = means.tolist()
        return dict(zip(collected[0], values, strict=True))

    def _exchange_of_gradients(self, wanted: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients only with the last micro-batch of a batch."""
        if not wanted and isinstance(self.loss_module, DistributedDataParallel):
            no_sync: AbstractContextManager[Any] = self.loss_module.no_sync()
            return no_sync
        return nullcontext()

    def validate(self, dataset: Dataset, folder: Path, log: RunLog | None, bar: tqdm) -> None:
        """Measures the detector, keeps it as `best.pt` if it is the best so far, and prints a line.

        Every process measures a share; only the first one, which has the log, does the rest.
        """
        found = validate(self.detector, self.objective, dataset, self.options)
        if found is None or log is None:
            return
        self.metrics, sheet = found
        log.validation(self.done, self.metrics, sheet)
        reached = self.metrics[self.objective.chosen_by]
        if self.best is None or (reached is not None and reached > self.best):
            self.best = reached
            save_state(folder / BEST, self.detector, self.objective.name, self.done, metrics=self.metrics)
        shown = (f"{name} {self.metrics.get(name)}" for name in SHOWN_METRICS if name in self.metrics)
        bar.write(f"{self.done}: " + "  ".join(shown))

    def save(self, folder: Path) -> None:
        save_state(
            folder / NAME,
            self.detector,
            self.objective.name,
            self.done,
            optimiser=self.optimiser.state_dict(),
            best=self.best,
            metrics=self.metrics,
            watch=self.watch.state,
            seconds=self.seconds,
        )

    def restore(self, folder: Path) -> None:
        """Restores the state in the folder's checkpoint. Raises ValueError if the run has done all its iterations."""
        with file_of_first(folder / NAME) as file:
            state = read_checkpoint(file)
        if state["iteration"] >= self.options.iterations:
            raise ValueError(
                f"{folder} has done its {state['iteration']} iterations; raise --iterations to train it further"
            )
        self.detector.load_state_dict(state["detector"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.best, self.metrics = state["iteration"], state["best"], state["metrics"]
        self.watch.state = state["watch"]
        self.began -= state["seconds"]


def _parallel(module: LossModule, objective: Objective) -> nn.Module:
    """The module as it is or, under `torchrun`, wrapped to average gradients over the processes."""
    if processes() == 1:
        return module
    device = module.detector.mean.device
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        # a feature pyramid has levels that only the RPN reads
        find_unused_parameters="rpn" not in objective.trained,
    )


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _freeze_normalisations(module: nn.Module) -> list[nn.Module]:
    """Freezes batch normalisations, because a detection batch has too few images for new statistics."""
    found: list[nn.Module] = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    for one in found:
        one.requires_grad_(False)
    return found
