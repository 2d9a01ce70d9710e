"""A detector whose features are float16, for the graph: half the file, and a GPU's fast arithmetic.

The backbone, the RPN's layers and the head's hidden ones are converted. Coordinates, suppression, class scores and
deltas stay float32: in float16 a coordinate beyond 1024 pixels has no fraction, and scores near 1 merge.
"""

import copy
from typing import Literal

import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector

Precision = Literal["fp32", "fp16"]


def with_precision(
    detector: FasterRCNN | TorchvisionDetector, precision: Precision
) -> FasterRCNN | TorchvisionDetector:
    """`detector` itself for fp32, for fp16 a copy with float16 features."""
    if precision == "fp32":
        return detector
    detector = copy.deepcopy(detector)
    for layers in detector.feature_layers:
        for module in layers.modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                _settle(module)
        layers.half()
    return detector


@torch.no_grad()
def _settle(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Moves a normalisation's running statistics into its weight and bias: float16 holds the quotient, but neither a
    variance below 6e-8 nor one above 65504."""
    if norm.weight is None or norm.bias is None or norm.running_mean is None or norm.running_var is None:
        return
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    norm.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
    norm.weight.copy_(scale)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
