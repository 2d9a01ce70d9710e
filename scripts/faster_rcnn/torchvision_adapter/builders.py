"""torchvision's Faster R-CNN models with trained weights: those that torchvision publishes, or a user's checkpoint.

The tensors of a checkpoint do not say everything. The user names the builder. The predictor's shape gives the number of
classes. Only normalisations that are not frozen count batches (`num_batches_tracked`), so a checkpoint without these
counts had frozen ones. All other settings come from `settings.py`.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
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
from faster_rcnn.detector.weights import download
from faster_rcnn.torchvision_adapter.checkpoints import PREDICTOR, read_model
from faster_rcnn.torchvision_adapter.settings import arguments, check_order, choose, recorded, report, set_anchors

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
SHOWN = 3  # names of tensors in a message

State = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """A torchvision model with trained weights.

    model: in eval mode;  origin: where its weights come from, for `model.json`;  labels: of its classes, where the
    source has them;  report: lines on what was used, assumed and ignored.
    """

    model: FasterRCNN
    origin: dict[str, Any]
    labels: tuple[str, ...] | None = None
    report: tuple[str, ...] = ()


def published_model(builder: str, weights: str, settings: Mapping[str, Any] | None = None) -> Trained:
    """Torchvision's own weights, from torch.hub's cache or the network.

    settings: by the names of `settings.SETTINGS`, None for torchvision's defaults.
    Raises ConnectionError if they cannot be downloaded, ValueError if the file in the cache is broken.
    """
    entry = torchvision.models.get_model_weights(builder)[weights]
    file = download(entry.url, f"download it elsewhere and put it into {Path(torch.hub.get_dir(), 'checkpoints')}")
    chosen = choose(settings or {}, None)
    try:
        model = torchvision.models.get_model(builder, weights=entry, progress=False, **arguments(chosen.values)).eval()
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{file} does not hold the weights {weights} of {builder}; remove it and try again") from error
    check_order(model)
    set_anchors(model, chosen.values)
    origin = {
        "torchvision": builder,
        "weights": weights,
        "batch_norm_epsilon": _epsilon_of(model),
        "settings": recorded(model, chosen),
    }
    labels = distinct(entry.meta["categories"][1:], f"{builder} {weights}")
    return Trained(model, origin, labels, tuple(report(model, chosen)))


def checkpoint_model(
    builder: str,
    file: Path,
    num_classes: int | None = None,
    epsilon: float | None = None,
    use: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Trained:
    """A checkpoint's model, built by one of BUILDERS.

    file: of torch.save or safetensors, with the tensors anywhere in it and under any prefix;  num_classes: with
    background, as torchvision counts;  epsilon: what the FrozenBatchNorm2d layers add to the variance;  use: which of
    several models in the file, see `read_model`;  settings: by the names of `settings.SETTINGS`; None, or a setting
    left out, means what the file says, or else torchvision's default.
    Raises FileNotFoundError, or ValueError if the file is not such a checkpoint or disagrees with the arguments.
    """
    checkpoint = read_model(file, use)
    state = checkpoint.state
    if state[PREDICTOR].ndim != 2 or len(state[PREDICTOR]) < 2:
        raise ValueError(
            f"{file}: {PREDICTOR} has shape {list(state[PREDICTOR].shape)}, which does not say how many classes there "
            "are"
        )
    found = len(state[PREDICTOR])
    if num_classes not in (None, found):
        raise ValueError(f"{file} has {found} classes with background, not {num_classes}; leave out --num-classes")
    chosen = choose(settings or {}, checkpoint.content)
    if fault := _misfit(state, builder, found, chosen.values):
        fitting = tuple(one for one in BUILDERS if one != builder and not _misfit(state, one, found, chosen.values))
        raise ValueError(f"{file} does not fit {builder}: {fault}; {_advice(fitting, state)}")
    model = _build(builder, found, chosen.values)
    lines = [checkpoint.report[0] + f": {builder}, {found - 1} classes and the background", *checkpoint.report[1:]]
    lines += _other_builder(builder, checkpoint.content)
    # v2 always has BatchNorm2d. The others have FrozenBatchNorm2d if built from weights, and num_batches_tracked in a
    # checkpoint shows that they were not.
    frozen = builder != "fasterrcnn_resnet50_fpn_v2" and not any("num_batches_tracked" in name for name in state)
    if frozen:
        assumed = EPSILON_OF_COCO.get(builder, 1e-5) if epsilon is None else epsilon
        _freeze_normalisations(model, assumed)
        lines += [] if epsilon is not None else [_on_epsilon(builder, assumed)]
    elif epsilon is not None:
        raise ValueError(f"{file} has no frozen normalisation; leave out --batch-norm-epsilon")
    model.load_state_dict(state)
    origin = {
        "torchvision": builder,
        "checkpoint": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "used": {"prefix": checkpoint.place, "tensors": len(state)},
        "batch_norm_epsilon": _epsilon_of(model),
        "settings": recorded(model, chosen),
    }
    return Trained(model.eval(), origin, report=(*lines, *report(model, chosen)))


def _on_epsilon(builder: str, assumed: float) -> str:
    line = f"assumed: --batch-norm-epsilon {assumed:g}, for its frozen normalisations"
    if builder not in EPSILON_OF_COCO:
        return line
    return f"{line}, as fine-tuned from COCO_V1; if its training began with ImageNet weights, give 1e-5"


def _other_builder(builder: str, content: Any) -> list[str]:
    """A line if the arguments in the file name another builder. Two builders have the same tensors."""
    saved = content.get("args", content.get("hyper_parameters")) if isinstance(content, Mapping) else None
    named = saved.get("model") if isinstance(saved, Mapping) else None
    if named in BUILDERS and named != builder:
        return [f"warning: the arguments in the file name {named}; --torchvision {named} has other settings"]
    return []


def _build(builder: str, classes: int, settings: Mapping[str, Any]) -> FasterRCNN:
    """An untrained model, without downloading backbone weights: the checkpoint has them."""
    model = torchvision.models.get_model(
        builder, weights=None, weights_backbone=None, num_classes=classes, **arguments(settings)
    )
    check_order(model)
    set_anchors(model, settings)
    return model


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


def _misfit(state: State, builder: str, classes: int, settings: Mapping[str, Any]) -> str:
    """How the tensors differ from those of a builder's model; empty if they fit. Allocates no memory."""
    with torch.device("meta"):
        try:
            model = _build(builder, classes, settings)
        except ValueError as error:  # anchors for another number of maps
            return str(error)
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


def _advice(fitting: tuple[str, ...], state: State) -> str:
    if fitting:
        return f"give --torchvision {' or '.join(fitting)}"
    logits = state.get("rpn.head.cls_logits.weight")
    if logits is not None and len(logits) not in (3, 15):  # of torchvision's builders
        return f"its RPN has {len(logits)} anchors at a location; give --anchor-sizes and --aspect-ratios"
    return "it fits none of torchvision's builders: build the model in Python and pass it to faster_rcnn.graph.publish"


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
