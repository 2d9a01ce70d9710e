"""torchvision's Faster R-CNNs with trained weights: its own of COCO, or a checkpoint of somebody's training.

A checkpoint holds tensors alone, so what is not a tensor must come from elsewhere: the builder from the user, the
number of classes from the predictor's shape, whether normalisations are frozen from what only the others count.
"""

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from faster_rcnn.data.label_names import distinct
from faster_rcnn.detector.weights import download, read_tensors

BUILDERS = (
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
WEIGHTS = ("COCO_V1",)
# The ResNet-50 of COCO_V1 was trained when FrozenBatchNorm2d added nothing to the variance, and torchvision sets its
# layers back to that after loading it; whoever fine-tunes it trains with 0 as well, and no file tells.
EPSILON_OF_COCO = {"fasterrcnn_resnet50_fpn": 0.0}
PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
SHOWN = 3  # names in a message

State = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """A model in eval mode;  origin: how it came about, for model.json;  labels: of its classes, where its source knows
    them;  remark: what the user should know, if anything."""

    model: FasterRCNN
    origin: dict[str, Any]
    labels: tuple[str, ...] | None = None
    remark: str = ""


def published_model(builder: str, weights: str) -> Trained:
    """torchvision's own weights, from torch.hub's cache or the network.

    Raises ConnectionError if the network does not give them, ValueError if the file in the cache is broken.
    """
    entry = torchvision.models.get_model_weights(builder)[weights]
    file = download(entry.url, f"download it elsewhere and put it into {Path(torch.hub.get_dir(), 'checkpoints')}")
    try:
        model = torchvision.models.get_model(builder, weights=entry, progress=False).eval()
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{file} does not hold the weights {weights} of {builder}; remove it and try again") from error
    origin = {"torchvision": builder, "weights": weights, "batch_norm_epsilon": _epsilon_of(model)}
    return Trained(model, origin, distinct(entry.meta["categories"][1:], f"{builder} {weights}"))


def checkpoint_model(builder: str, file: Path, num_classes: int | None = None, epsilon: float | None = None) -> Trained:
    """The model of one of BUILDERS that a checkpoint was saved from.

    file: a state dict, or a dict that holds one under "model", "state_dict" or "model_state_dict";  num_classes: with
    background, as torchvision counts;  epsilon: what its FrozenBatchNorm2d layers add to the variance.
    Raises FileNotFoundError, or ValueError if the file is no such checkpoint or does not agree with the arguments.
    """
    state = read_tensors(file)
    if PREDICTOR not in state:
        raise ValueError(f"{file} has no {PREDICTOR} and so is no Faster R-CNN of torchvision; {_advice(())}")
    if state[PREDICTOR].ndim != 2 or len(state[PREDICTOR]) < 2:
        raise ValueError(f"{file}: {PREDICTOR} has shape {list(state[PREDICTOR].shape)}, which tells no classes apart")
    found = len(state[PREDICTOR])
    if num_classes not in (None, found):
        raise ValueError(f"{file} knows {found} classes with background, not {num_classes}; leave out --num-classes")
    if fault := _misfit(state, builder, found):
        raise ValueError(f"{file} is not of {builder}: {fault}; {_advice(_builders_that_fit(state, found))}")
    model = _build(builder, found)
    # v2 normalises by batches even from trained weights; the others then freeze, and only who counts batches is not
    frozen = builder != "fasterrcnn_resnet50_fpn_v2" and not any("num_batches_tracked" in name for name in state)
    if frozen:
        assumed = EPSILON_OF_COCO.get(builder, 1e-5) if epsilon is None else epsilon
        _freeze_normalisations(model, assumed)
    elif epsilon is not None:
        raise ValueError(f"{file} has no frozen normalisation; leave out --batch-norm-epsilon")
    model.load_state_dict(state)
    remark = ""
    if frozen and epsilon is None and builder in EPSILON_OF_COCO:
        remark = (
            f"{file} is taken as fine-tuned from COCO_V1, whose frozen normalisations have epsilon 0; "
            "if it was trained from ImageNet's weights alone, give --batch-norm-epsilon 1e-5"
        )
    origin = {
        "torchvision": builder,
        "checkpoint": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "batch_norm_epsilon": _epsilon_of(model),
    }
    return Trained(model.eval(), origin, remark=remark)


def describe(model: FasterRCNN) -> dict[str, Any]:
    """What decides a model's answers beside its weights, by the names of torchvision's arguments, for model.json."""
    rpn, heads, transform = model.rpn.eval(), model.roi_heads, model.transform
    anchors = rpn.anchor_generator
    return {
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "image_mean": list(transform.image_mean),
        "image_std": list(transform.image_std),
        "anchor_sizes": [list(sizes) for sizes in anchors.sizes],
        "aspect_ratios": [list(ratios) for ratios in anchors.aspect_ratios],
        "rpn_pre_nms_top_n": rpn.pre_nms_top_n(),
        "rpn_post_nms_top_n": rpn.post_nms_top_n(),
        "rpn_nms_thresh": rpn.nms_thresh,
        "rpn_score_thresh": rpn.score_thresh,
        "box_score_thresh": heads.score_thresh,
        "box_nms_thresh": heads.nms_thresh,
        "box_detections_per_img": heads.detections_per_img,
        "bbox_reg_weights": list(heads.box_coder.weights),
    }


def _build(builder: str, classes: int) -> FasterRCNN:
    """An untrained model; its backbone's weights are not asked for, since they are in the checkpoint."""
    return torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=classes)


def _freeze_normalisations(module: nn.Module, epsilon: float) -> None:
    """Puts FrozenBatchNorm2d where the builders have BatchNorm2d for want of trained weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, epsilon))
        else:
            _freeze_normalisations(child, epsilon)


def _epsilon_of(model: FasterRCNN) -> float:
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d)
    return next(module.eps for module in model.backbone.modules() if isinstance(module, kinds))


def _misfit(state: State, builder: str, classes: int) -> str:
    """Why the tensors are not those of a builder's model; empty if they are. Costs no memory."""
    with torch.device("meta"):
        model = _build(builder, classes)
    own = model.state_dict()
    misshaped = [name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape]
    fitting = {name: tensor for name, tensor in state.items() if name not in misshaped}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to where there is no memory
        try:
            # torchvision's layers take their names of before version 0.13 here, whatever `own` calls them
            missing, unexpected = model.load_state_dict(fitting, strict=False)
        except RuntimeError as error:
            missing, unexpected = [], []
            misshaped += re.findall(r"size mismatch for (\S+):", str(error)) or ["some"]
    missing = [name for name in missing if name not in misshaped]
    faults = {"missing": missing, "unknown": unexpected, "of another shape": misshaped}
    return "; ".join(f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names)


def _builders_that_fit(state: State, classes: int) -> tuple[str, ...]:
    return tuple(builder for builder in BUILDERS if not _misfit(state, builder, classes))


def _advice(fitting: tuple[str, ...]) -> str:
    if fitting:
        return f"give --torchvision {' or '.join(fitting)}"
    return "it fits none of torchvision's builders: build the model in Python and give it to faster_rcnn.graph.publish"


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
