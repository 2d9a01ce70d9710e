"""Four-step alternating training (Ren et al. 2015, section 3.2): two networks that come to share their backbone.

1. The RPN, from the pretrained backbone.
2. Fast R-CNN, from the pretrained backbone again, on the proposals of step 1. Nothing is shared yet.
3. A fresh RPN head on the backbone of step 2, which stays as it is.
4. The layers that are Fast R-CNN's own, on the proposals of step 3; the backbone stays as it is.

Each step is a run of its own in a folder of its own, resumed or skipped by what is found there.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.detector.checkpoint import BEST, NAME, build_detector, read_checkpoint, save_state
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.proposal_sources.rpn import rpn_regions, uncut_limits
from faster_rcnn.proposal_sources.table import ProposalTable, WithProposals
from faster_rcnn.training.loop import train
from faster_rcnn.training.options import TrainingOptions, short_warm_up
from faster_rcnn.training.processes import rank, wait_for_all
from faster_rcnn.training.tasks import TASKS, Task
from faster_rcnn.training.validation import validate

STEPS = ("1-rpn", "2-fast-rcnn", "3-rpn", "4-fast-rcnn")
# Of all iterations: the reference code gives 80,000, 40,000, 80,000 and 40,000 on VOC 2007.
SHARES = (2, 1, 2, 1)


def step_iterations(iterations: int) -> tuple[int, ...]:
    """How the iterations of a run are dealt out to its steps, each at least one."""
    return tuple(max(1, round(iterations * share / sum(SHARES))) for share in SHARES)


def alternate(
    fresh: Callable[[], FasterRCNN],
    training: Dataset,
    validation: Dataset,
    options: TrainingOptions,
    iterations: Sequence[int],
    folder: Path,
) -> tuple[FasterRCNN, dict[str, Any]]:
    """Runs the four steps in `folder/1-rpn` … and returns the detector and its validation metrics.

    fresh: a new detector with the pretrained backbone;  options: those of each step but for its `iterations`.
    """

    def step(number: int, detector: FasterRCNN, task: Task, given: FasterRCNN | None = None) -> FasterRCNN:
        name, data = STEPS[number - 1], (training, validation)
        if given is not None:
            before = folder / STEPS[number - 2]
            most = given.config.training_proposals.after_nms
            data = (
                with_rpn_proposals(given, training, before / "proposals-train.npz", uncut_limits(given, most)),
                with_rpn_proposals(given, validation, before / "proposals-val.npz", given.config.proposals),
            )
        length = iterations[number - 1]
        own = replace(options, iterations=length, warm_up=short_warm_up(options.warm_up, length))
        return _run_step(detector, task, data, own, folder / name)

    rpn = step(1, fresh(), TASKS["rpn"])
    fast = step(2, fresh(), TASKS["fast-rcnn"], given=rpn)
    second = fresh().to(fast.mean.device)
    second.backbone.load_state_dict(fast.backbone.state_dict())
    second = step(3, second, replace(TASKS["rpn"], trained=("rpn",)))
    whole = fresh().to(fast.mean.device)
    whole.backbone.load_state_dict(second.backbone.state_dict())
    whole.rpn.load_state_dict(second.rpn.state_dict())
    whole.head.load_state_dict(fast.head.state_dict())
    whole = step(4, whole, replace(TASKS["fast-rcnn"], trained=("head",)), given=second)
    return whole, _conclude(whole, validation, options, folder, sum(iterations))


def with_rpn_proposals(detector: FasterRCNN, dataset: Dataset, path: Path, limits: ProposalLimits) -> WithProposals:
    """A data set with a detector's proposals, which are read from `path`, or made and left there."""
    if not path.is_file() and rank() == 0:
        rpn_regions(detector, dataset, limits).save(path)
    wait_for_all()
    return WithProposals(dataset, ProposalTable.load(path), limits.after_nms)


def _run_step(
    detector: FasterRCNN, task: Task, data: tuple[Dataset, Dataset], options: TrainingOptions, folder: Path
) -> FasterRCNN:
    """The detector after a step, which is begun, gone on with, or found done."""
    started = (folder / NAME).is_file()
    if started and (state := read_checkpoint(folder))["iteration"] >= options.iterations:
        return build_detector(state).to(detector.mean.device)
    folder.mkdir(exist_ok=True)
    train(detector, task, *data, options, folder, resume=started)
    return detector


def _conclude(
    detector: FasterRCNN, validation: Dataset, options: TrainingOptions, folder: Path, iterations: int
) -> dict[str, Any]:
    """Leaves the finished detector in `folder` as every other run leaves its own."""
    metrics: dict[str, Any] = {}
    if rank() == 0:
        metrics, sheet = validate(detector, TASKS["joint"], validation, options)
        sheet.save(folder / "predictions.jpg", quality=88)
        save_state(folder / NAME, detector, "joint", iterations, metrics=metrics)
        shutil.copyfile(folder / NAME, folder / BEST)
    wait_for_all()
    seconds = sum(read_checkpoint(folder / step)["seconds"] for step in STEPS)
    return {**metrics, "seconds": round(seconds)}
