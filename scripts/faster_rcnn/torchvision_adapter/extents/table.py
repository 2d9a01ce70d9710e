"""The rule of every operation that a network may call on the images.

A rule is called as `rule(all_tags, operation, *args, **kwargs)`, with the network's arguments. It computes the result,
so that each image's part of it is what it would be if the image were alone, and tags it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from faster_rcnn.torchvision_adapter.extents.cells import Activation, CellByCell
from faster_rcnn.torchvision_adapter.extents.channels import concatenation, of_channels_last, parts, permutation
from faster_rcnn.torchvision_adapter.extents.operations import functions_of
from faster_rcnn.torchvision_adapter.extents.resizing import interpolate
from faster_rcnn.torchvision_adapter.extents.statistics import adaptive_average_pool, group_norm, mean
from faster_rcnn.torchvision_adapter.extents.windows import average_pool, convolution, max_pool, pad

_KEEPS_VALUES = CellByCell(keeps_zero=True, keeps_sign=True)
_KEEPS_ZERO = CellByCell(keeps_zero=True)
_POSITIVE = CellByCell(positive=True)

RULES: dict[str, Callable[..., Any]] = {
    "relu": Activation(F.relu, positive=True),
    "relu6": Activation(F.relu6, positive=True),
    "hardswish": Activation(F.hardswish),
    "silu": Activation(F.silu),
    "gelu": Activation(F.gelu),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softplus"), _POSITIVE),
    **dict.fromkeys(("leaky_relu", "elu", "selu", "mish", "tanh", "prelu", "neg", "abs"), _KEEPS_ZERO),
    **dict.fromkeys(("dropout", "to", "float", "half", "contiguous", "clone", "detach"), _KEEPS_VALUES),
    **dict.fromkeys(("sub", "batch_norm", "hardtanh", "clamp", "softsign"), CellByCell()),
    "add": CellByCell(joins="sum"),
    "mul": CellByCell(joins="product"),
    "div": CellByCell(joins="quotient"),
    "conv2d": convolution,
    "max_pool2d": max_pool,
    "avg_pool2d": average_pool,
    "pad": pad,
    "adaptive_avg_pool2d": adaptive_average_pool,
    "mean": mean,
    "group_norm": group_norm,
    "interpolate": interpolate,
    "cat": concatenation,
    "concat": concatenation,
    "chunk": parts,
    "split": parts,
    "permute": permutation,
    "linear": of_channels_last,
    "layer_norm": of_channels_last,
}
FUNCTIONS = functions_of(RULES)
