"""Prepares a torchvision model for a comparison: builds it, exports it, and traces torchvision's own ONNX file."""

from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph.precision import Precision
from faster_rcnn.torchvision_adapter.builders import BUILDERS, checkpoint_model, published_model
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector

SEED = 0


class Source(NamedTuple):
    """A torchvision builder's name, and where its weights come from; random weights if both are None."""

    builder: str
    weights: str | None
    checkpoint: Path | None


class Prepared(NamedTuple):
    """The resize rule of the model, and its stride: the sides of a canvas are multiples of it, in pixels."""

    resize: ResizeRule
    stride: int


def random_model(builder: str) -> FasterRCNN:
    """A torchvision model with seeded random weights.

    Its batch normalisations get statistics measured on noise. Without them activations vanish or overflow in a deep
    network, first of all in float16. The model finds almost nothing and proposes as many regions as its limits allow.
    """
    torch.manual_seed(SEED)
    model = getattr(torchvision.models.detection, builder)(weights=None, weights_backbone=None).eval()
    take_statistics(model, [torch.rand(3, 240, 320)])
    return model


@torch.no_grad()
def take_statistics(model: FasterRCNN, images: list[Tensor]) -> None:
    """Gives the model's batch normalisations the statistics of `images`, float32 [3, h, w] each."""
    normalisations = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d | FrozenBatchNorm2d)]
    hooks = [one.register_forward_pre_hook(_take_statistics) for one in normalisations]
    model(images)
    for hook in hooks:
        hook.remove()


def without_resizing(model: FasterRCNN) -> FasterRCNN:
    """Returns `model`, changed to accept images without resizing them."""
    model.transform.resize = MethodType(_as_it_is, model.transform)
    return model.eval()


def prepare(source: Source, saved: Path, graph: Path | None, precision: Precision) -> Prepared:
    """Saves the model for the contenders and, if `graph` is a path, exports its graph there.

    Raises ValueError for a builder that torchvision lacks, and the errors of reading weights and of exporting.
    """
    from faster_rcnn.graph.export import export_onnx  # needs onnxscript, which running the contenders does not

    if source.builder not in BUILDERS:
        raise ValueError(f"torchvision has no detector {source.builder}; take one of {', '.join(BUILDERS)}")
    if source.checkpoint is not None:
        model = checkpoint_model(source.builder, source.checkpoint).model
    elif source.weights is not None:
        model = published_model(source.builder, source.weights).model
    else:
        model = random_model(source.builder)
    torch.save(model, saved)
    detector = TorchvisionDetector(model)
    if graph is not None:
        export_onnx(detector, graph, precision)
    return Prepared(detector.resize, detector.stride)


def trace(saved: Path, graph: Path, pixels: np.ndarray) -> None:
    """Traces torchvision's eager code on this image, N = 1, into an ONNX file. pixels: uint8 [h, w, 3]."""
    from faster_rcnn.graph.translations import OPSET  # needs onnxscript too

    model = without_resizing(torch.load(saved, weights_only=False))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    torch.onnx.export(model, ([image],), graph, dynamo=False, opset_version=OPSET, input_names=["image"])


def _take_statistics(module: nn.BatchNorm2d | FrozenBatchNorm2d, inputs: tuple[Tensor]) -> None:
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
    for known, seen in ((module.running_mean, mean), (module.running_var, variance)):
        assert isinstance(known, Tensor)  # None for a normalisation that keeps no statistics
        known.copy_(seen)


def _as_it_is(_: nn.Module, image: Tensor, target: Any) -> tuple[Tensor, Any]:
    return image, target
