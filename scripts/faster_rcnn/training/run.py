"""A training run: its record in `run.json`, how it begins and resumes, and how other commands find it.

A run folder holds the record and everything that the loop writes (see `loop.train`). In an alternating run each step
has a folder of its own inside it, named by STEPS.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.loader import Share
from faster_rcnn.data.sources import open_dataset, share_to_hold_out
from faster_rcnn.data.white import find_white
from faster_rcnn.detector.checkpoint import NAME, read_checkpoint
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.freezing import freeze_before
from faster_rcnn.detector.weights import fetch_weights
from faster_rcnn.files import write_text
from faster_rcnn.proposal_sources.sources import check_source
from faster_rcnn.proposal_sources.table import LIMIT
from faster_rcnn.training.options import (
    NAME_OF_NO_WEIGHTS,
    TrainingOptions,
    complete_options,
    configure,
    default_weights,
)
from faster_rcnn.training.processes import processes, rank

RECORD = "run.json"
SCHEDULE_NAMES = ("joint", "alternating", "fast-rcnn")
STEPS = ("1-rpn", "2-fast-rcnn", "3-rpn", "4-fast-rcnn")  # of alternating training (section 3.2)
STEP_SHARES = (2, 1, 2, 1)  # the reference code trains 80,000, 40,000, 80,000 and 40,000 iterations on VOC 2007

# Options that may change on resuming: the learning rate (after a divergence), the length (the rate then follows the
# longer schedule), and the number of worker processes, which has no effect on the result.
CHANGEABLE = ("learning_rate", "iterations", "workers")


@dataclass(frozen=True)
class RunRecord:
    """The contents of `run.json`: how a training run was made. The keys of the file are the names of these fields.

    A field that is None is not written. The defaults describe runs that are older than the key. The copy of a record
    in a published `model.json` has no `config`.
    """

    command: str = ""  # as the user typed it
    data: str = "shapes"
    train_split: str = "train"
    val_split: str = "val"
    val_share: float | None = None  # held out for validation where the data has no split for it
    skip_bad_boxes: bool = False
    exif_boxes: str | None = None  # one of orientation.EXIF_BOXES, if the user chose one
    backbone: str = "compact"
    weights: str = NAME_OF_NO_WEIGHTS
    schedule: str = "joint"  # one of SCHEDULE_NAMES
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    config: DetectorConfig | None = None
    options: TrainingOptions | None = None
    step_iterations: tuple[int, ...] | None = None  # alternating: the length of each of STEPS
    proposals_for_training: str | None = None  # fast-rcnn: source of the proposals of the training split
    proposals: str | None = None  # fast-rcnn: source of the proposals of the validation split
    proposal_limit: int | None = None  # fast-rcnn: the best proposals per image that are used
    measure_targets: bool | None = None  # fast-rcnn: whether the target normalisation is measured
    annotations_sha256: tuple[str | None, ...] | None = None  # of both splits; None for generated images
    resumed: tuple[str, ...] | None = None  # the commands that changed the options
    seconds: int | None = None  # once the run is finished
    unknown: dict[str, Any] = field(default_factory=dict)  # keys that another version wrote

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "RunRecord":
        known = {one.name for one in fields(cls)} - {"unknown"}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        if "config" in record:
            values["config"] = DetectorConfig.from_dict(record["config"])
        if "options" in record:
            values["options"] = TrainingOptions.from_dict(record["options"])
        own = {name: value for name, value in values.items() if name in known}
        return cls(**own, unknown={name: value for name, value in record.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        named = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "unknown"}
        record = {name: list(one) if isinstance(one, tuple) else one for name, one in named.items() if one is not None}
        if self.config is not None:
            record["config"] = self.config.to_dict()
        if self.options is not None:
            record["options"] = asdict(self.options)
        return record | self.unknown

    @property
    def detector_config(self) -> DetectorConfig:
        """`config`, for training. Raises ValueError if the record has none."""
        if self.config is None:
            raise ValueError(f"{RECORD} has no config, so this run cannot be trained; start a new run")
        return self.config

    @property
    def training_options(self) -> TrainingOptions:
        """`options`, for training. Raises ValueError if the record has none."""
        if self.options is None:
            raise ValueError(f"{RECORD} has no options, so this run cannot be trained; start a new run")
        return self.options


def read_record(folder: Path) -> RunRecord:
    """The record of the run in a folder.

    Raises FileNotFoundError if it does not exist, ValueError if it cannot be read.
    """
    file = folder / RECORD
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name the folder of a run that faster-rcnn train made")
    try:
        return RunRecord.from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # not JSON, or not a record
        raise ValueError(f"{file} is not what faster-rcnn train wrote ({error}); fix it, or start a new run") from error


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes `run.json` whole or not at all, so that a crash leaves the previous record intact."""
    write_text(folder / RECORD, json.dumps(record.to_json(), indent=1) + "\n")


def begin_run(folder: Path, user_options: Mapping[str, Any], command: str, device: str) -> RunRecord:
    """The record of a new run in `folder`, which is not written yet. Checks the options before it reads any data.

    user_options: the options that the user named;  command: as it was typed.
    Raises ValueError for options that are wrong or do not go together, FileExistsError if a run has begun in the
    folder, ConnectionError if the weights cannot be downloaded.
    """
    if has_begun(folder):
        raise FileExistsError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
    _check_together(user_options)
    backbone, data = user_options.get("backbone", "compact"), user_options.get("data", "shapes")
    weights = user_options.get("weights", default_weights(backbone))
    fetch_weights(backbone, weights)  # before the data, which may take an hour to read
    _check_buildable(user_options, backbone, weights)
    schedule = user_options.get("schedule", "joint")
    train_split, skip_bad_boxes = user_options.get("train_split", "train"), user_options.get("skip_bad_boxes", False)
    val_split = user_options.get("val_split", "val")
    val_share = share_to_hold_out(data, train_split, val_split, user_options.get("val_share"))
    exif_boxes = user_options.get("exif_boxes")
    training = open_dataset(
        data, train_split, skip_bad_boxes=skip_bad_boxes, val_share=val_share, exif_boxes=exif_boxes
    )
    options = complete_options(user_options, backbone, weights, data, len(training))
    user_options = {"white": _white_of(training), **user_options}
    _check_batch(options, len(training))
    record = RunRecord(
        command=command,
        data=data,
        train_split=train_split,
        val_split=val_split,
        val_share=val_share,
        skip_bad_boxes=skip_bad_boxes,
        exif_boxes=exif_boxes,
        backbone=backbone,
        weights=weights,
        schedule=schedule,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        device=device,
        config=configure(user_options, backbone, training.labels),
        options=options,
    )
    if schedule == "alternating":
        lengths = tuple(user_options.get("step_iterations", step_iterations(options.iterations)))
        return replace(record, step_iterations=lengths, options=replace(options, iterations=sum(lengths)))
    if schedule == "fast-rcnn":
        return replace(
            record,
            proposals_for_training=user_options["proposals"][0],
            proposals=user_options["proposals"][-1],
            proposal_limit=user_options.get("proposal_limit", LIMIT),
            measure_targets=user_options.get("target_normalisation") == "measured",
        )
    return record


def resume_run(folder: Path, user_options: Mapping[str, Any], command: str) -> RunRecord:
    """The record of the run in `folder`, with the options that the user changed; it is not written yet.

    Raises FileNotFoundError if there is no run, ValueError for an option that cannot be changed.
    """
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder / RECORD} does not exist, so there is nothing to resume; leave out --resume")
    if fixed := [f"--{name.replace('_', '-')}" for name in user_options if name not in CHANGEABLE]:
        raise ValueError(f"--resume goes on with the run's own options; leave out {', '.join(fixed)}")
    record = read_record(folder)
    options = record.training_options
    if user_options.get("iterations", options.iterations) < options.iterations:
        raise ValueError(f"--iterations of a run can only be raised; {folder} has {options.iterations}")
    if "iterations" in user_options and record.schedule == "alternating":
        raise ValueError(
            "each step of alternating training builds on the finished ones; start a new run to train longer"
        )
    changed = replace(options, **user_options)
    if changed == options:
        return record
    return replace(record, options=changed, resumed=(*(record.resumed or ()), command))


def changed_options(
    record: RunRecord, began_with: Mapping[str, Any], user_options: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of `user_options` that would change a run that is resumed by the command with which it began.

    began_with: the options in `record.command`. What later commands have changed stays so.
    """
    absent = object()
    return {
        name: value
        for name, value in user_options.items()
        if value not in (began_with.get(name, absent), getattr(record.options, name, absent))
    }


def iterations_done(folder: Path, record: RunRecord) -> int | None:
    """The number of iterations of a finished run; None if it is not finished."""
    if not (folder / NAME).is_file():
        return None
    done = int(read_checkpoint(folder)["iteration"])
    return done if done >= record.training_options.iterations else None


def has_begun(folder: Path) -> bool:
    """Whether the folder holds a run with a checkpoint; one without has nothing to lose."""
    return any((place / NAME).is_file() for place in (folder, *(folder / step for step in STEPS)))


def step_iterations(iterations: int) -> tuple[int, ...]:
    """The iterations of an alternating run, divided among its steps; each gets at least one."""
    return tuple(max(1, round(iterations * share / sum(STEP_SHARES))) for share in STEP_SHARES)


def run_folder(target: Path) -> Path:
    """The run folder that `target` belongs to: a checkpoint, a run folder, or a step of an alternating run."""
    folder = target.parent if target.is_file() else target
    return folder.parent if folder.name in STEPS else folder


def find_record(target: Path) -> RunRecord | None:
    """The record of the run that `target` belongs to; None if it is not in a run folder, like a published version.

    Raises FileNotFoundError if `target` does not exist, ValueError if its run is not finished.
    """
    if not target.exists():
        raise FileNotFoundError(f"{target} does not exist; faster-rcnn train --out {target} writes it")
    folder = run_folder(target)
    if not (folder / RECORD).is_file():
        return None
    check_finished(target)
    return read_record(folder)


def check_finished(folder: Path) -> None:
    """Raises ValueError for an alternating run whose detector is not assembled yet, naming the step to finish first."""
    if not (folder / RECORD).is_file() or (folder / NAME).is_file():
        return
    record = read_record(folder)
    if record.schedule != "alternating" or record.step_iterations is None:
        return
    unfinished = [
        step
        for step, length in zip(STEPS, record.step_iterations, strict=True)
        if not _has_finished(folder / step, length)
    ]
    what = f"has not finished step {unfinished[0]}" if unfinished else "has not assembled its detector"
    raise ValueError(f"{folder} {what} yet; go on with faster-rcnn train --out {folder} --resume")


def proposals_of_step(target: Path) -> tuple[Path, Path] | None:
    """The step whose proposals step 2 or 4 of alternating training used, and its table for the validation split.

    target: a step's folder or a checkpoint in it.  None if it is not one of these steps.
    """
    step = target.parent if target.is_file() else target
    if step.name not in (STEPS[1], STEPS[3]):
        return None
    before = step.parent / STEPS[STEPS.index(step.name) - 1]
    return before, before / "proposals-val.npz"


def _has_finished(step: Path, iterations: int) -> bool:
    return (step / NAME).is_file() and read_checkpoint(step)["iteration"] >= iterations


def _white_of(training: Dataset) -> int:
    """The white that is found in the training split; the first process prints it."""
    white, text = find_white(training)
    if text and rank() == 0:
        print(text)
    return white


def _check_batch(options: TrainingOptions, images: int) -> None:
    """Raises ValueError if a batch cannot be divided among processes and micro-batches, or exceeds the data set."""
    Share(0, processes(), options.accumulate).check(options.batch_size)
    if options.batch_size > images:
        raise ValueError(
            f"the data set has {images} images, but a batch needs {options.batch_size}; lower --batch-size"
        )


def _check_buildable(user_options: Mapping[str, Any], backbone: str, weights: str) -> None:
    """Raises ValueError if no detector can be built from the options.

    Examples: an unknown stage, a wrong number of anchor scales, an impossible size.
    """
    with torch.device("meta"):
        detector = FasterRCNN(configure(user_options, backbone, ("object",)))
    if "trainable_from" in user_options:
        freeze_before(detector, user_options["trainable_from"])
        if weights == NAME_OF_NO_WEIGHTS:
            stage = user_options["trainable_from"]
            print(f"warning: the layers before {stage} keep their random weights, because of --weights none")


def _check_together(user_options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that do not go together."""
    schedule, sources = user_options.get("schedule", "joint"), user_options.get("proposals", ())
    for source in sources:
        check_source(source)
    if len(sources) > 2:
        raise ValueError("--proposals names one source, or one for training and one for validation")
    if (schedule == "fast-rcnn") != ("proposals" in user_options):
        raise ValueError("--proposals SOURCE and --schedule fast-rcnn belong together; give both or neither")
    if "step_iterations" in user_options and schedule != "alternating":
        raise ValueError("--step-iterations belongs to --schedule alternating; give --iterations")
    if "step_iterations" in user_options and "iterations" in user_options:
        raise ValueError("--step-iterations already set the length of the run; leave out --iterations")
    if user_options.get("target_normalisation") == "measured" and schedule != "fast-rcnn":
        raise ValueError(
            "--target-normalisation measured needs proposals that do not change during training; "
            "use --target-normalisation fixed, or --schedule fast-rcnn"
        )
