"""torchvision's Faster R-CNN models with trained weights: those that torchvision publishes, or a user's checkpoint.

A checkpoint holds only tensors, so everything else comes from elsewhere. The user names the builder. The predictor's
shape gives the number of classes. Only normalisations that are not frozen count batches (`num_batches_tracked`), so a
checkpoint without these counts had frozen ones.
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
# When the ResNet-50 of COCO_V1 was trained, FrozenBatchNorm2d added nothing to the variance. torchvision restores that
# when it loads these weights, so a fine-tuned model has epsilon 0 too, and its checkpoint does not say so.
EPSILON_OF_COCO = {"fasterrcnn_resnet50_fpn": 0.0}
PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
SHOWN = 3  # names of tensors in a message

State = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """A torchvision model with trained weights.

    model: in eval mode;  origin: where its weights come from, for `model.json`;  labels: of its classes, where the
    source has them;  remark: what the user should know, or empty.
    """

    model: FasterRCNN
    origin: dict[str, Any]
    labels: tuple[str, ...] | None = None
    remark: str = ""


def published_model(builder: str, weights: str) -> Trained:
    """Torchvision's own weights, from torch.hub's cache or the network.

    Raises ConnectionError if they cannot be downloaded, ValueError if the file in the cache is broken.
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
    """A checkpoint's model, built by one of BUILDERS.

    file: a state dict, or a dict that holds one under "model", "state_dict" or "model_state_dict";  num_classes: with
    background, as torchvision counts;  epsilon: what the FrozenBatchNorm2d layers add to the variance.
    Raises FileNotFoundError, or ValueError if the file is not such a checkpoint or disagrees with the arguments.
    """
    state = read_tensors(file)
    if PREDICTOR not in state:
        raise ValueError(f"{file} has no {PREDICTOR}, so it is not a torchvision Faster R-CNN; {_advice(())}")
    if state[PREDICTOR].ndim != 2 or len(state[PREDICTOR]) < 2:
        raise ValueError(
            f"{file}: {PREDICTOR} has shape {list(state[PREDICTOR].shape)}, which does not say how many classes there "
            "are"
        )
    found = len(state[PREDICTOR])
    if num_classes not in (None, found):
        raise ValueError(f"{file} has {found} classes with background, not {num_classes}; leave out --num-classes")
    if fault := _misfit(state, builder, found):
        raise ValueError(f"{file} does not fit {builder}: {fault}; {_advice(_builders_that_fit(state, found))}")
    model = _build(builder, found)
    # v2 always has BatchNorm2d. The others have FrozenBatchNorm2d if built from weights, and num_batches_tracked in a
    # checkpoint shows that they were not.
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
            f"{file} is assumed to be fine-tuned from COCO_V1, whose frozen normalisations have epsilon 0; "
            "if its training began with ImageNet weights, give --batch-norm-epsilon 1e-5"
        )
    origin = {
        "torchvision": builder,
        "checkpoint": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "batch_norm_epsilon": _epsilon_of(model),
    }
    return Trained(model.eval(), origin, remark=remark)


def _build(builder: str, classes: int) -> FasterRCNN:
    """An untrained model, without downloading backbone weights: the checkpoint has them."""
    return torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=classes)


def _freeze_normalisations(module: nn.Module, epsilon: float) -> None:
    """Replaces BatchNorm2d by FrozenBatchNorm2d, as the builders do when they are given trained weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, epsilon))
        else:
            _freeze_normalisations(child, epsilon)


def _epsilon_of(model: FasterRCNN) -> float:
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d)
    return next(module.eps for module in model.backbone.modules() if isinstance(module, kinds))


def _misfit(state: State, builder: str, classes: int) -> str:
    """How the tensors differ from those of a builder's model; empty if they fit. Allocates no memory."""
    with torch.device("meta"):
        model = _build(builder, classes)
    own = model.state_dict()
    misshaped = [name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape]
    fitting = {name: tensor for name, tensor in state.items() if name not in misshaped}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that copying to the meta device has no effect
        try:
            # loading also accepts the names from before torchvision 0.13, which `own` does not have
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
    return "it fits none of torchvision's builders: build the model in Python and pass it to faster_rcnn.graph.publish"


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
