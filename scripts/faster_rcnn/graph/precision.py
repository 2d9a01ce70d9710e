"""Converts a detector's features to float16 for export: half the file size, and faster arithmetic on a GPU.

The backbone, the RPN's layers and the head's hidden layers are converted. Coordinates, suppression, class scores and
deltas stay float32: in float16 a coordinate beyond 1024 pixels has no fraction, and scores near 1 merge.
"""

import copy
from typing import Literal

import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from faster_rcnn.graph.exportable import AnyExportable

Precision = Literal["fp32", "fp16"]


def with_precision(detector: AnyExportable, precision: Precision) -> AnyExportable:
    """`detector` itself for fp32; for fp16 a copy with float16 features."""
    if precision == "fp32":
        return detector
    detector = copy.deepcopy(detector)
    for layers in detector.feature_layers:
        for module in layers.modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                _fold_statistics(module)
        layers.half()
    return detector


@torch.no_grad()
def _fold_statistics(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Moves a normalisation's running statistics into its weight and bias.

    float16 can hold their quotient, but not a variance below 6e-8 or above 65504.
    """
    if norm.weight is None or norm.bias is None or norm.running_mean is None or norm.running_var is None:
        return
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    norm.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
    norm.weight.copy_(scale)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
