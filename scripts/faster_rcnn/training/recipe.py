"""How a run is made: what `run.json` keeps, so that it can be told of, resumed, and made again."""

import json
import os
import platform
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from faster_rcnn.data.loader import Share
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.detector.checkpoint import NAME
from faster_rcnn.detector.config import DetectorConfig, default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.freezing import freeze_before
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.roi_head import TargetNormalisation
from faster_rcnn.detector.weights import fetch_weights, load_backbone_weights
from faster_rcnn.proposal_sources.sources import check_source
from faster_rcnn.training.alternating import step_iterations
from faster_rcnn.training.options import TrainingOptions, short_warm_up
from faster_rcnn.training.processes import processes

RECORD = "run.json"
SCHEDULE_NAMES = ("joint", "alternating", "fast-rcnn")
PRETRAINED = ("vgg16", "resnet50", "resnet50_fpn", "mobilenet_v3_large", "mobilenet_v3_large_fpn")

# From given weights, what the papers do: SGD, the rate cut to a tenth after three quarters (section 3.1.3), the first
# stages as they are (Fast R-CNN, section 4.5). With batches of more than the papers' one image the rate grows.
_FINE_TUNING: dict[str, dict[str, Any]] = {
    "vgg16": {"batch_size": 1, "learning_rate": 0.001, "trainable_from": "conv3_1"},
    "resnet50": {"batch_size": 4, "learning_rate": 0.005, "trainable_from": "layer2"},
    "resnet50_fpn": {"batch_size": 4, "learning_rate": 0.005, "trainable_from": "layer2"},
    "mobilenet_v3_large": {"batch_size": 8, "learning_rate": 0.01},
    "mobilenet_v3_large_fpn": {"batch_size": 8, "learning_rate": 0.01},
    # from a run of one's own, whose statistics of normalisation are of images alike
    "compact": {
        "batch_size": 8, "learning_rate": 0.0003, "frozen_statistics": False, "optimiser": "adamw", "decay": "cosine",
        "warm_up": 100,
    },
}  # fmt: skip
_FROM_SCRATCH: dict[str, dict[str, Any]] = {
    "compact": {"batch_size": 8, "learning_rate": 0.001},
    "vgg16": {"batch_size": 4, "learning_rate": 0.0001},
    "resnet50": {"batch_size": 4, "learning_rate": 0.0003},
    "resnet50_fpn": {"batch_size": 4, "learning_rate": 0.0003},
    "mobilenet_v3_large": {"batch_size": 8, "learning_rate": 0.0005},
    "mobilenet_v3_large_fpn": {"batch_size": 8, "learning_rate": 0.0005},
}
EPOCHS, LEAST_BATCHES = 30, 2500  # for data of one's own: the first where there is much, the second where little
VALIDATED = 1000  # images: all of most people's
SHAPES = {"batch_size": 16, "iterations": 4500, "augmentations": ("flip",)}  # images without end need no more
NAME_OF_NO_WEIGHTS = "none"


def default_weights(backbone: str) -> str:
    return "imagenet" if backbone in PRETRAINED else NAME_OF_NO_WEIGHTS


def default_options(backbone: str, weights: str, data: str, images: int) -> dict[str, Any]:
    """The training options that suit a backbone, where it starts from, and the data."""
    if weights == NAME_OF_NO_WEIGHTS:
        chosen: dict[str, Any] = {"optimiser": "adamw", "decay": "cosine", "warm_up": 100} | _FROM_SCRATCH[backbone]
    else:
        frozen = {"frozen_statistics": True, "optimiser": "sgd", "decay": "step", "warm_up": 500}
        chosen = frozen | _FINE_TUNING[backbone]
    chosen |= {"augmentations": ("flip", "scale-jitter", "photometric"), "workers": max(1, (os.cpu_count() or 2) // 2)}
    if data == "shapes":
        return chosen | SHAPES
    chosen["batch_size"] = min(chosen["batch_size"], max(1, images))
    length = max(LEAST_BATCHES, EPOCHS * images // chosen["batch_size"])
    return chosen | {"iterations": length, "validation_pictures": VALIDATED}


def configure(given: dict[str, Any], backbone: str, labels: tuple[str, ...]) -> DetectorConfig:
    """The backbone's preset with what the command line changes of it."""
    config = default_config(backbone, labels)
    changes: dict[str, Any] = {name: tuple(given[name]) for name in ("anchor_scales", "anchor_ratios") if name in given}
    if "roi_pooling" in given:
        changes["roi_pooling"] = given["roi_pooling"]
    smallest = given.get("min_size", config.resize.min_size)
    longest = given.get("max_size", max(config.resize.max_size, smallest))
    changes["resize"] = ResizeRule(smallest, longest)
    if "crossing_anchors" in given:
        keep = given["crossing_anchors"] == "keep"
        changes["anchor_sampling"] = replace(config.anchor_sampling, keep_crossing=keep)
    # Fast R-CNN alone mines harder background among given proposals (section 2.3); with an RPN the code takes all
    background = (0.1, 0.5) if given.get("schedule") == "fast-rcnn" else config.proposal_sampling.background_iou
    changes["proposal_sampling"] = replace(
        config.proposal_sampling,
        batch=given.get("rois", config.proposal_sampling.batch),
        background_iou=tuple(given.get("background_iou", background)),
    )
    loss_names = {field.name for field in fields(config.losses)}
    changed = {name: given[name] for name in loss_names if name in given}
    if changed.get("rpn_normaliser") == "sampled":
        changed = {"rpn_lambda": 1.0} | changed  # the reference code, which divides so, has no λ
    changes["losses"] = replace(config.losses, **changed)
    threshold = given.get("proposal_nms", config.proposals.nms_threshold)
    for name, option in (("training_proposals", "training_proposals"), ("proposals", "test_proposals")):
        limits = getattr(config, name)
        before, after = given.get(option, (limits.before_nms, limits.after_nms))
        changes[name] = replace(limits, before_nms=before, after_nms=after, nms_threshold=threshold)
    if "detection_nms" in given:
        changes["detections"] = replace(config.detections, nms_threshold=given["detection_nms"])
    if given.get("target_normalisation") == "none":
        changes["target_normalisation"] = TargetNormalisation(stds=(1.0, 1.0, 1.0, 1.0))
    return replace(config, **changes)


# What may change when a run goes on: the rate of a run that diverged, the length of one that could learn more (its rate
# then follows the longer schedule), and what has no effect on the result.
CHANGEABLE = ("learning_rate", "iterations", "workers")


def begun_run(folder: Path, given: dict[str, Any], command: str, device: str) -> dict[str, Any]:
    """The record of a new run. What can be wrong with its options shows here, before the data is read.

    given: what the command line names;  command: as it was typed.
    Raises ValueError for what cannot be, FileExistsError if a run has begun in the folder, ConnectionError if weights
    cannot be fetched.
    """
    if any(folder.rglob(NAME)):  # without a checkpoint nothing would be lost
        raise FileExistsError(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
    _check_together(given)
    backbone, data = given.get("backbone", "compact"), given.get("data", "shapes")
    weights = given.get("weights", default_weights(backbone))
    fetch_weights(backbone, weights)  # what is missing must not show after an hour of reading data
    _check_buildable(given, backbone)
    run: dict[str, Any] = {
        "command": command,
        "data": data,
        "train_split": given.get("train_split", "train"),
        "val_split": given.get("val_split", "val"),
        "skip_bad_boxes": given.get("skip_bad_boxes", False),
        "backbone": backbone,
        "weights": weights,
        "schedule": given.get("schedule", "joint"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": device,
    }
    training = open_dataset(data, run["train_split"], skip_bad_boxes=run["skip_bad_boxes"])
    run["config"] = configure(given, backbone, training.labels).to_dict()
    run["options"] = asdict(_options(given, run, len(training)))
    if run["schedule"] == "alternating":
        run["step_iterations"] = list(given.get("step_iterations", step_iterations(run["options"]["iterations"])))
        run["options"]["iterations"] = sum(run["step_iterations"])
    if run["schedule"] == "fast-rcnn":
        run["proposals_for_training"], run["proposals"] = given["proposals"][0], given["proposals"][-1]
        run["proposal_limit"] = given.get("proposal_limit", 2000)
        run["measure_targets"] = given.get("target_normalisation") == "measured"
    return run


def _options(given: dict[str, Any], run: dict[str, Any], images: int) -> TrainingOptions:
    """The options of a run on so many images: what suits it, and what the command line changes of that."""
    known = {field.name for field in fields(TrainingOptions)}
    chosen = default_options(run["backbone"], run["weights"], run["data"], images)
    chosen |= {name: value for name, value in given.items() if name in known}
    if "warm_up" not in given:
        chosen["warm_up"] = short_warm_up(chosen["warm_up"], chosen["iterations"])
    options = TrainingOptions(**{**chosen, "augmentations": tuple(chosen["augmentations"])})
    Share(0, processes(), options.accumulate).check(options.batch_size)
    if options.batch_size > images:
        raise ValueError(f"the data set has {images} images, a batch takes {options.batch_size}; lower --batch-size")
    return options


def _check_buildable(given: dict[str, Any], backbone: str) -> None:
    """Raises ValueError if there is no such detector: a stage, a number of anchor scales, a size that cannot be."""
    with torch.device("meta"):
        detector = FasterRCNN(configure(given, backbone, ("object",)))
    if "trainable_from" in given:
        freeze_before(detector, given["trainable_from"])
        if given.get("weights", default_weights(backbone)) == NAME_OF_NO_WEIGHTS:
            print(f"warning: the layers before {given['trainable_from']} stay random, as --weights none has none")


def _check_together(given: dict[str, Any]) -> None:
    """Raises ValueError for options that do not go together."""
    schedule = given.get("schedule", "joint")
    for source in given.get("proposals", ()):
        check_source(source)
    if len(given.get("proposals", ())) > 2:
        raise ValueError("--proposals names one source, or one for training and one for validation")
    if (schedule == "fast-rcnn") != ("proposals" in given):
        raise ValueError("--proposals SOURCE and --schedule fast-rcnn belong together; give both or neither")
    if "step_iterations" in given and schedule != "alternating":
        raise ValueError("--step-iterations are those of --schedule alternating; give --iterations")
    if "step_iterations" in given and "iterations" in given:
        raise ValueError("--step-iterations say how long the run is; leave out --iterations")
    if given.get("target_normalisation") == "measured" and schedule != "fast-rcnn":
        raise ValueError(
            "targets are measured on given proposals, and those of an RPN in training change all the time; "
            "take --target-normalisation fixed, or --schedule fast-rcnn"
        )


def resumed_run(folder: Path, given: dict[str, Any], command: str) -> dict[str, Any]:
    """The record of the run in `folder`, with what may be changed of it.

    Raises FileNotFoundError where there is no run, ValueError for what may not be changed.
    """
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{folder / RECORD} is not there, so there is nothing to resume; leave out --resume")
    if fixed := [f"--{name.replace('_', '-')}" for name in given if name not in CHANGEABLE]:
        raise ValueError(f"--resume goes on with the run's own options; leave out {', '.join(fixed)}")
    run = read_run(folder)
    options = run["options"]
    if given.get("iterations", options["iterations"]) < options["iterations"]:
        raise ValueError(f"--iterations of a run can only be raised; {folder} has {options['iterations']}")
    if "iterations" in given and run["schedule"] == "alternating":
        raise ValueError(
            "each step of alternating training builds on the finished ones; start a new run to train longer"
        )
    run["options"] = options | given
    if given:
        run.setdefault("resumed", []).append(command)
    return run


def read_run(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder.

    Raises FileNotFoundError if it is not there, ValueError if it cannot be read.
    """
    file = folder / RECORD
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; name the folder of a run that scripts/train.py made")
    try:
        run: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not what scripts/train.py wrote; mend it, or start a new run") from error
    return run


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Writes the record, aside first, so that a crash leaves the former one whole."""
    aside = folder / f"{RECORD}.part"
    aside.write_text(json.dumps(run, indent=1) + "\n")
    aside.replace(folder / RECORD)


def options_of(run: dict[str, Any]) -> TrainingOptions:
    options = run["options"]
    return TrainingOptions(**{**options, "augmentations": tuple(options["augmentations"])})


def fresh_detector(run: dict[str, Any]) -> FasterRCNN:
    """The run's detector as it is before the first iteration, the same each time."""
    torch.manual_seed(run["options"]["seed"])
    detector = FasterRCNN(DetectorConfig.from_dict(run["config"]))
    if (weights := fetch_weights(run["backbone"], run["weights"])) is not None:
        load_backbone_weights(detector, weights)
    return detector
