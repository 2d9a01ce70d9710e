"""Training schedules: joint, alternating or Fast R-CNN alone, from a run's record to the trained detector."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from faster_rcnn.data.coverage import anchor_coverage
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.detector.anchor_shapes import STRIDES
from faster_rcnn.detector.boxes import encode
from faster_rcnn.detector.checkpoint import BEST, NAME, build_detector, load_detector, read_checkpoint, save_state
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.rules import ProposalLimits, ProposalSampling, TargetNormalisation
from faster_rcnn.detector.weights import fetch_weights, load_backbone_weights
from faster_rcnn.files import write_image
from faster_rcnn.proposal_sources.rpn import rpn_regions, uncut_limits
from faster_rcnn.proposal_sources.sources import propose_for
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, WithProposals
from faster_rcnn.training.caps import limits_exceeded
from faster_rcnn.training.loop import train
from faster_rcnn.training.objectives import OBJECTIVES, Objective
from faster_rcnn.training.options import TrainingOptions, short_warm_up
from faster_rcnn.training.processes import file_of_first, rank
from faster_rcnn.training.run import STEPS, RunRecord, write_record
from faster_rcnn.training.run_folder import check_room, remove_leftovers, used_alone
from faster_rcnn.training.splits import check_same_images, open_splits
from faster_rcnn.training.validation import validate
from faster_rcnn.training.waiting import alone, each, from_first


@dataclass(frozen=True)
class Setting:
    """The inputs of a schedule.

    build: returns a new detector with the initial weights, the same each time;  has_begun: whether the folder has a
    checkpoint.
    """

    folder: Path
    options: TrainingOptions
    training: Dataset
    validation: Dataset
    device: torch.device
    build: Callable[[], FasterRCNN]
    has_begun: bool = False

    def fresh(self) -> FasterRCNN:
        return self.build().to(self.device)

    def detector(self) -> FasterRCNN:
        """The detector of the run's checkpoint, or a fresh one."""
        if not self.has_begun:
            return self.fresh()
        with file_of_first(self.folder / NAME) as file:
            return load_detector(file).to(self.device)


def carry_out(
    record: RunRecord, folder: Path, device: torch.device, accept_changed_images: bool = False
) -> dict[str, Any]:
    """Trains what the record describes, from the beginning or from the checkpoints in `folder`.

    accept_changed_images: go on although images are not those that the run began with.
    Returns the last validation's metrics and the `seconds` of the whole training run.
    """
    alone(lambda: check_room(folder, record))
    training, validation, record = each(lambda: open_splits(record))
    with ExitStack() as held:

        def prepare() -> bool:
            if not (folder / NAME).is_file():
                print(_coverage_of_anchors(training, record.detector_config))
                for line in limits_exceeded(training, validation, record.detector_config, record.training_options):
                    print(line)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(used_alone(folder))
            remove_leftovers(folder)
            has_begun = any(folder.rglob(NAME))  # in alternating training the steps have checkpoints first
            check_same_images((training, validation), folder, accept_changed_images or not has_begun)
            write_record(folder, record)
            return (folder / NAME).is_file()

        setting = Setting(
            folder,
            record.training_options,
            training,
            validation,
            device,
            build=lambda: fresh_detector(record),
            has_begun=from_first(prepare),
        )
        metrics = SCHEDULES[record.schedule](setting, record)
        if rank() == 0:
            write_record(folder, replace(record, seconds=metrics["seconds"]))
    return metrics


def fresh_detector(record: RunRecord) -> FasterRCNN:
    """The run's detector with its initial weights, the same each time.

    Only the first process reads the weights that training starts from; the loop gives them to the others.
    """
    torch.manual_seed(record.training_options.seed)
    detector = FasterRCNN(record.detector_config)
    weights = alone(lambda: fetch_weights(record.backbone, record.weights))
    if weights is not None:
        load_backbone_weights(detector, weights)
    return detector


def _coverage_of_anchors(training: Dataset, config: DetectorConfig) -> str:
    return anchor_coverage(training, config, STRIDES[config.backbone]).report()


def _joint(setting: Setting, _record: RunRecord) -> dict[str, Any]:
    """Approximate joint training (Ren et al. 2015, section 3.2)."""
    return train(
        setting.detector(),
        OBJECTIVES["joint"],
        setting.training,
        setting.validation,
        setting.options,
        setting.folder,
        resume=setting.has_begun,
    )


def alternate(setting: Setting, iterations: tuple[int, ...]) -> tuple[FasterRCNN, dict[str, Any]]:
    """Four-step alternating training (Ren et al. 2015, section 3.2): two networks that share their backbone in the end.

    1. The RPN, from the pretrained backbone.
    2. Fast R-CNN, from the pretrained backbone again, on the proposals of step 1. Nothing is shared yet.
    3. A new RPN head on the backbone of step 2, which is frozen.
    4. The layers that only Fast R-CNN has, on the proposals of step 3; the backbone is frozen.

    Each step trains in its own folder, `setting.folder/1-rpn` and so on. A finished step is skipped, an interrupted one
    is resumed.
    iterations: the length of each step, in place of `setting.options.iterations`.
    Returns the detector and its validation metrics.
    """
    first_rpn = _step(setting, 1, iterations, setting.fresh(), OBJECTIVES["rpn"])
    fast_rcnn = _step(setting, 2, iterations, setting.fresh(), OBJECTIVES["fast-rcnn"], proposer=first_rpn)

    second_rpn = setting.fresh()
    second_rpn.backbone.load_state_dict(fast_rcnn.backbone.state_dict())
    second_rpn = _step(setting, 3, iterations, second_rpn, replace(OBJECTIVES["rpn"], trained=("rpn",)))

    detector = setting.fresh()
    detector.backbone.load_state_dict(second_rpn.backbone.state_dict())
    detector.rpn.load_state_dict(second_rpn.rpn.state_dict())
    detector.head.load_state_dict(fast_rcnn.head.state_dict())
    head_alone = replace(OBJECTIVES["fast-rcnn"], trained=("head",))
    detector = _step(setting, 4, iterations, detector, head_alone, proposer=second_rpn)
    return detector, _conclude(setting, detector, sum(iterations))


def _alternating(setting: Setting, record: RunRecord) -> dict[str, Any]:
    assert record.step_iterations is not None
    return alternate(setting, record.step_iterations)[1]


def _step(
    setting: Setting,
    number: int,
    iterations: tuple[int, ...],
    detector: FasterRCNN,
    objective: Objective,
    proposer: FasterRCNN | None = None,
) -> FasterRCNN:
    """The detector after step `number`. Trains the step, resumes it, or loads the result if the step is finished.

    proposer: the detector of the step before, if this step trains on its proposals.
    """
    folder, length = setting.folder / STEPS[number - 1], iterations[number - 1]
    training, validation = setting.training, setting.validation
    if proposer is not None:
        before = setting.folder / STEPS[number - 2]
        limits = uncut_limits(proposer, proposer.config.training_proposals.after_nms)
        training = _with_rpn_proposals(proposer, training, before / "proposals-train.npz", limits)
        validation = _with_rpn_proposals(proposer, validation, before / "proposals-val.npz", proposer.config.proposals)
    has_begun = from_first((folder / NAME).is_file)
    if has_begun:
        with file_of_first(folder / NAME) as file:
            state = read_checkpoint(file)
        if state["iteration"] >= length:
            return build_detector(state).to(detector.mean.device)
    alone(lambda: folder.mkdir(exist_ok=True))
    warm_up = short_warm_up(setting.options.warm_up, length)
    options = replace(setting.options, iterations=length, warm_up=warm_up)
    train(detector, objective, training, validation, options, folder, resume=has_begun)
    return detector


def _with_rpn_proposals(detector: FasterRCNN, dataset: Dataset, path: Path, limits: ProposalLimits) -> WithProposals:
    """The data set with a detector's proposals, read from `path` or computed and saved there."""
    return WithProposals(dataset, _table(path, lambda: rpn_regions(detector, dataset, limits)), limits.after_nms)


def _table(path: Path, make: Callable[[], ProposalTable]) -> ProposalTable:
    """The table in a file of the run folder. If there is none, the first process makes it while the others wait."""

    def complete() -> None:
        if not path.is_file():
            make().save(path)

    alone(complete)
    with file_of_first(path) as file:
        return ProposalTable.load(file)


def _conclude(setting: Setting, detector: FasterRCNN, iterations: int) -> dict[str, Any]:
    """Validates the assembled detector and saves it in the run folder as the other schedules do."""
    folder = setting.folder
    metrics: dict[str, Any] = {}
    found = validate(detector, OBJECTIVES["joint"], setting.validation, setting.options)
    if found is not None:
        metrics, sheet = found
        write_image(folder / "predictions.jpg", sheet, 88)
        for name in (BEST, NAME):  # the second one says that the run is finished
            save_state(folder / name, detector, "joint", iterations, metrics=metrics)
    seconds = from_first(lambda: sum(read_checkpoint(folder / step)["seconds"] for step in STEPS))
    return {**metrics, "seconds": round(seconds)}


def _fast_rcnn(setting: Setting, record: RunRecord) -> dict[str, Any]:
    """Fast R-CNN alone (Girshick 2015), on proposals from any source."""
    assert record.proposals_for_training is not None
    assert record.proposals is not None
    detector = setting.detector()
    if record.proposals_for_training == record.proposals and record.proposals.endswith(".npz"):
        _check_names_differ(setting.training, setting.validation, record.proposals)
    limit = LIMIT if record.proposal_limit is None else record.proposal_limit
    training = _with_proposals(setting, setting.training, record.proposals_for_training, "train", limit)
    validation = _with_proposals(setting, setting.validation, record.proposals, "val", limit)
    if record.measure_targets and not setting.has_begun:
        measured = from_first(lambda: measure_normalisation(training, detector.config.proposal_sampling))
        detector.config = replace(detector.config, target_normalisation=measured)
    objective = OBJECTIVES["fast-rcnn"]
    return train(detector, objective, training, validation, setting.options, setting.folder, resume=setting.has_begun)


def _with_proposals(setting: Setting, dataset: Dataset, source: str, name: str, limit: int) -> WithProposals:
    """The data set with the proposals of a source, which are saved in the run folder as `proposals-{name}.npz`."""
    path = setting.folder / f"proposals-{name}.npz"
    workers = max(1, setting.options.workers)
    table = _table(path, lambda: propose_for(dataset, source, limit, workers=workers, device=str(setting.device)))
    return WithProposals(dataset, table, limit)


def _check_names_differ(training: Dataset, validation: Dataset, file: str) -> None:
    """Raises ValueError if images of both splits have the same name, which one file of proposals cannot distinguish."""
    names = {training.name(index) for index in range(len(training))}
    both = names & {validation.name(index) for index in range(len(validation))}
    if both:
        raise ValueError(
            f"{len(both)} images have the same name in both splits, the first is {min(both)}, so {file} cannot hold "
            "proposals for both; give two files: --proposals TRAIN.npz VAL.npz"
        )


def measure_normalisation(dataset: Dataset, rule: ProposalSampling) -> TargetNormalisation:
    """Mean and standard deviation of the regression targets of all foreground proposals (Fast R-CNN, section 2.3).

    dataset: its samples carry proposals.  Targets do not depend on an image's scale, so the original boxes are used.
    Raises ValueError if there are fewer than two foreground proposals.
    """
    targets = []
    for index in tqdm(range(len(dataset)), desc="measuring targets", unit="image", leave=False):
        sample = dataset[index].objects()
        if sample.proposals is None or not len(sample.proposals) or not len(sample.boxes):
            continue
        proposals, boxes = torch.from_numpy(sample.proposals), torch.from_numpy(sample.boxes)
        overlap, objects = box_iou(proposals, boxes).max(dim=1)
        foreground = overlap >= rule.foreground_iou
        targets.append(encode(boxes[objects[foreground]], proposals[foreground]))
    deltas = torch.cat([torch.zeros(0, 4), *targets]).double()
    if len(deltas) < 2:
        raise ValueError(
            f"fewer than two proposals overlap an object with an IoU of {rule.foreground_iou:g} or more, so there are "
            "no targets to measure; use another source"
        )
    std, mean = torch.std_mean(deltas, dim=0)
    return TargetNormalisation(tuple(mean.tolist()), tuple(std.clamp(min=1e-3).tolist()))


SCHEDULES: dict[str, Callable[[Setting, RunRecord], dict[str, Any]]] = {
    "joint": _joint,
    "alternating": _alternating,
    "fast-rcnn": _fast_rcnn,
}
