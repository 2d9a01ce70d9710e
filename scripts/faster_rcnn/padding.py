"""Keeping an image's features independent of the canvas it lies on.

A canvas is larger than its image, and every convolution wider than 1×1 carries what lies outside into the image: zeros
of the padding on a larger canvas, but on a tight one the zeros of the convolution itself, with no bias, normalisation
or activation applied to them. The two differ, so an answer would depend on the canvas. The cure: what lies outside the
image is set to zero before each such convolution. Then every canvas gives what the tight one gives. (In training the
padding still enters the statistics of a batch normalisation, and through its running mean all images alike.)

N  images;  h, w  feature map size;  sizes are height, width of each image on its canvas, in pixels.
"""

import torch
from torch import Tensor


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


def mean_inside(features: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """The mean of `features` [N, C, h, w] over the cells of the image: [N, C]; zero where there are none."""
    mask = inside(sizes, stride, features.shape[2], features.shape[3])[:, None].to(torch.float32)
    return ((features * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)).clamp(min=1)).to(features.dtype)
