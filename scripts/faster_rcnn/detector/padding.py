"""Keeps an image's features independent of the canvas that it lies on.

A convolution wider than 1×1 mixes cells outside the image into cells inside it. On a tight canvas the cells outside are
the convolution's own zero padding. On a larger canvas they are features of padding pixels: zeros to which biases,
normalisations and activations were applied. The two differ, so the result would depend on the canvas. Therefore all
cells outside the image are set to zero before each such convolution; every canvas then yields the result of the tight
one. (In training, padding still affects the batch statistics of batch normalisation, and thus the running ones.)

N  images;  h, w  feature map size;  sizes are height, width of each image on its canvas, in pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from faster_rcnn.detector.graph_form import for_cuda

# Subtracted from features outside an image before an activation; the largest float16 is 65504.
OFFSET, FLOAT16_OFFSET = 1e30, 3e4


def inside(sizes: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Marks the cells of a feature map that cover at least one pixel of the image.

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
    """ReLU of `features` [N, C, h, w], with every cell outside the image set to zero.

    canvas: H, W.  A portable graph does this by an addition before the activation, which ONNX Runtime's CPU provider
    fuses into the preceding convolution. There, a multiplication after the activation would be a separate pass over all
    features, and two more to leave and re-enter the convolutions' memory layout. Reading h and w from the features
    would cost the same. The CUDA provider fuses neither, and the addition would be three passes.
    """
    if not torch.compiler.is_exporting():
        return blank_outside(F.relu(features), sizes, stride)
    height, width = canvas
    for _ in range(stride.bit_length() - 1):
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    mask = inside(sizes, stride, height, width)[:, None]
    if for_cuda():
        return F.relu(features) * mask.to(features.dtype)
    return F.relu(features + outside_offset(mask, features.shape[1], features.dtype))


def outside_offset(mask: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """[N, channels, h, w]: zero where `mask` [N, 1, h, w] is True, elsewhere so low that the activation returns zero.

    A convolution computes it, because ONNX Runtime then keeps it in the memory layout of the features.
    """
    outside = (mask.to(dtype) - 1) * (FLOAT16_OFFSET if dtype == torch.float16 else OFFSET)
    return F.conv2d(outside, outside.new_ones(channels, 1, 1, 1))


def mean_inside(features: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """The mean of `features` [N, C, h, w] over the cells of the image: [N, C]; zero if the image has no cells."""
    mask = inside(sizes, stride, features.shape[2], features.shape[3])[:, None].to(torch.float32)
    return ((features * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)).clamp(min=1)).to(features.dtype)
