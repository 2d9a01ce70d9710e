"""The options of a training run, their defaults, and the configuration of the detector that they describe."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from faster_rcnn.detector.config import DetectorConfig, default_config
from faster_rcnn.detector.limits import with_detections
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import TargetNormalisation
from faster_rcnn.training.launcher import processes_on_this_machine


@dataclass(frozen=True)
class TrainingOptions:
    """How the loop trains. Times are in iterations; one iteration trains on one batch."""

    iterations: int
    batch_size: int  # images per iteration, over all processes and micro-batches
    learning_rate: float
    warm_up: int  # iterations over which the rate grows linearly
    decay: str = "cosine"  # a key of optimiser.DECAYS
    optimiser: str = "sgd"  # a key of optimiser.OPTIMISERS
    clip_norm: float = 10.0  # L2 norm over all gradients; only an unusual batch exceeds it
    accumulate: int = 1  # micro-batches per batch, computed one after the other to save memory
    augmentations: tuple[str, ...] = ("flip",)
    with_difficult: bool = False  # VOC's difficult objects; without them Fast R-CNN gains 1.2 points (section 4.3)
    trainable_from: str | None = None  # the first stage of the backbone that is trained; None: all stages
    frozen_statistics: bool = False  # keep the backbone's batch-norm statistics and scales
    validate_every: int = 1000
    validation_pictures: int = 200
    checkpoint_every: int = 250
    workers: int = 1  # processes that prepare images
    seed: int = 0
    mixed_precision: bool = True

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "TrainingOptions":
        """Options from JSON, which has no tuples."""
        return cls(**{**options, "augmentations": tuple(options.get("augmentations", cls.augmentations))})


PRETRAINED = ("vgg16", "resnet50", "resnet50_fpn", "mobilenet_v3_large", "mobilenet_v3_large_fpn")
NAME_OF_NO_WEIGHTS = "none"

# Fine-tuning follows the papers: SGD, a tenth of the rate after three quarters of the iterations (Faster R-CNN,
# section 3.1.3), and the first stages frozen (Fast R-CNN, section 4.5). The papers' rate is for one image per batch;
# larger batches get a higher one.
_FINE_TUNING: dict[str, dict[str, Any]] = {
    "vgg16": {"batch_size": 1, "learning_rate": 0.001, "trainable_from": "conv3_1"},
    "resnet50": {"batch_size": 4, "learning_rate": 0.005, "trainable_from": "layer2"},
    "resnet50_fpn": {"batch_size": 4, "learning_rate": 0.005, "trainable_from": "layer2"},
    "mobilenet_v3_large": {"batch_size": 8, "learning_rate": 0.01},
    "mobilenet_v3_large_fpn": {"batch_size": 8, "learning_rate": 0.01},
    # From an earlier run. Its batch-norm statistics come from similar images, so they may keep adapting.
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
EPOCHS = 30  # default length of a run on the user's data
LEAST_BATCHES = 2500  # lower limit of the default length, because 30 epochs of a small data set are too few
MOST_VALIDATED = 1000  # validation images at most; most data sets have fewer
SHAPES = {"batch_size": 16, "iterations": 4500, "augmentations": ("flip",)}  # sufficient for generated images


def default_weights(backbone: str) -> str:
    return "imagenet" if backbone in PRETRAINED else NAME_OF_NO_WEIGHTS


def default_workers() -> int:
    """Half of the cores, divided among the processes that train on this machine."""
    return max(1, (os.cpu_count() or 2) // 2 // processes_on_this_machine())


def default_options(backbone: str, weights: str, data: str, images: int) -> dict[str, Any]:
    """Training options that suit a backbone, its initial weights and a training set of `images` images."""
    if weights == NAME_OF_NO_WEIGHTS:
        options: dict[str, Any] = {"optimiser": "adamw", "decay": "cosine", "warm_up": 100} | _FROM_SCRATCH[backbone]
    else:
        frozen = {"frozen_statistics": True, "optimiser": "sgd", "decay": "step", "warm_up": 500}
        options = frozen | _FINE_TUNING[backbone]
    options |= {"augmentations": ("flip", "scale-jitter", "photometric"), "workers": default_workers()}
    if data == "shapes":
        return options | SHAPES
    options["batch_size"] = min(options["batch_size"], max(1, images))
    length = max(LEAST_BATCHES, EPOCHS * images // options["batch_size"])
    return options | {"iterations": length, "validation_pictures": MOST_VALIDATED}


def complete_options(
    user_options: Mapping[str, Any], backbone: str, weights: str, data: str, images: int
) -> TrainingOptions:
    """The options of a run: those that the user named, and defaults for the others."""
    known = {field.name for field in fields(TrainingOptions)}
    options = default_options(backbone, weights, data, images)
    options |= {name: value for name, value in user_options.items() if name in known}
    if "epochs" in user_options:
        options["iterations"] = math.ceil(user_options["epochs"] * images / options["batch_size"])
    if "warm_up" not in user_options:
        options["warm_up"] = short_warm_up(options["warm_up"], options["iterations"])
    return TrainingOptions.from_dict(options)


def short_warm_up(warm_up: int, iterations: int) -> int:
    """The warm-up, cut to a quarter of a short run."""
    return max(1, min(warm_up, iterations // 4))


def configure(user_options: Mapping[str, Any], backbone: str, labels: tuple[str, ...]) -> DetectorConfig:
    """The backbone's preset, changed by the options that the user named."""
    named, config = user_options, default_config(backbone, labels)
    changes: dict[str, Any] = {name: tuple(named[name]) for name in ("anchor_scales", "anchor_ratios") if name in named}
    if "white" in named:
        changes["white"] = named["white"]
    if "roi_pooling" in named:
        changes["roi_pooling"] = named["roi_pooling"]
    smallest = named.get("min_size", min(config.resize.min_size, named.get("max_size", config.resize.min_size)))
    longest = named.get("max_size", max(config.resize.max_size, smallest))
    changes["resize"] = ResizeRule(smallest, longest)
    if "crossing_anchors" in named:
        keep = named["crossing_anchors"] == "keep"
        changes["anchor_sampling"] = replace(config.anchor_sampling, keep_crossing=keep)
    # Fast R-CNN alone samples harder background, IoU 0.1 to 0.5 (its section 2.3); with an RPN the reference code
    # samples from all background.
    background = (0.1, 0.5) if named.get("schedule") == "fast-rcnn" else config.proposal_sampling.background_iou
    changes["proposal_sampling"] = replace(
        config.proposal_sampling,
        batch=named.get("rois", config.proposal_sampling.batch),
        background_iou=tuple(named.get("background_iou", background)),
    )
    loss_names = {field.name for field in fields(config.losses)}
    changed = {name: named[name] for name in loss_names if name in named}
    if changed.get("rpn_normaliser") == "sampled":
        changed = {"rpn_lambda": 1.0} | changed  # the reference code divides by the sampled anchors and has no λ
    changes["losses"] = replace(config.losses, **changed)
    threshold = named.get("proposal_nms", config.proposals.nms_threshold)
    for name, option in (("training_proposals", "training_proposals"), ("proposals", "test_proposals")):
        limits = getattr(config, name)
        before, after = named.get(option, (limits.before_nms, limits.after_nms))
        changes[name] = replace(limits, before_nms=before, after_nms=after, nms_threshold=threshold)
    if "detection_nms" in named:
        changes["detections"] = replace(config.detections, nms_threshold=named["detection_nms"])
    if named.get("target_normalisation") == "none":
        changes["target_normalisation"] = TargetNormalisation(stds=(1.0, 1.0, 1.0, 1.0))
    config = replace(config, **changes)
    return with_detections(config, named["detections"]) if "detections" in named else config
