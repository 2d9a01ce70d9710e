"""Keeping an image's features independent of the canvas it lies on.

A canvas is larger than its image, and every convolution wider than 1×1 carries what lies outside into the image: zeros
of the padding on a larger canvas, but on a tight one the zeros of the convolution itself, with no bias, normalisation
or activation applied to them. The two differ, so an answer would depend on the canvas. The cure: what lies outside the
image is set to zero before each such convolution. Then every canvas gives what the tight one gives. (In training the
padding still enters the statistics of a batch normalisation, and through its running mean all images alike.)

N  images;  h, w  feature map size;  sizes are height, width of each image on its canvas, in pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# What is added to a feature outside an image before an activation; float16 ends at 65504.
BANISHED, BANISHED_HALF = 1e30, 3e4


def inside(sizes: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Which cells of a feature map stand for at least one pixel of the image.

    sizes: int64 [N, 2].  Returns bool [N, h, w]; along a side of s pixels the first ceil(s / stride) cells are True.
    """
    rows = torch.arange(height, device=sizes.device) * stride < sizes[:, 0:1]
    columns = torch.arange(width, device=sizes.device) * stride < sizes[:, 1:2]
    return rows[:, :, None] & columns[:, None, :]


def blank_outside(features: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """`features` [N, C, h, w] with every cell outside the image set to zero."""
    mask = inside(sizes, stride, features.shape[2], features.shape[3])
    return features * mask[:, None].to(features.dtype)


def relu_inside(features: Tensor, sizes: Tensor, stride: int, canvas: Sequence[int]) -> Tensor:
    """ReLU of `features` [N, C, h, w] of a canvas H, W, zero in every cell outside the image.

    In a graph the cells are blanked before the activation, by an addition that becomes part of the convolution before
    it; a multiplication behind it would be a pass of its own over all features, and on a CPU two more in and out of the
    convolutions' layout. For the same reason h and w are not asked of the features.
    """
    if not torch.compiler.is_exporting():
        return blank_outside(F.relu(features), sizes, stride)
    height, width = canvas
    for _ in range(stride.bit_length() - 1):
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    mask = inside(sizes, stride, height, width)[:, None]
    return F.relu(features + banishment(mask, features.shape[1], features.dtype))


def banishment(mask: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """[N, channels, h, w]: zero where `mask` [N, 1, h, w] is True, else so low that an activation makes it zero.

    Made by a convolution, whose output ONNX Runtime keeps in the layout of the features that it is added to.
    """
    outside = (mask.to(dtype) - 1) * (BANISHED_HALF if dtype == torch.float16 else BANISHED)
    return F.conv2d(outside, outside.new_ones(channels, 1, 1, 1))


def mean_inside(features: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """The mean of `features` [N, C, h, w] over the cells of the image: [N, C]; zero where there are none."""
    mask = inside(sizes, stride, features.shape[2], features.shape[3])[:, None].to(torch.float32)
    return ((features * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)).clamp(min=1)).to(features.dtype)
