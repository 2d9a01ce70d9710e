"""Operations that slide a window over the map: convolution, pooling, padding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from faster_rcnn.torchvision_adapter.extents.extent import Extent, Pair, Unsupported
from faster_rcnn.torchvision_adapter.extents.operations import Operation
from faster_rcnn.torchvision_adapter.extents.tags import Tag, Tags


def pair(value: Any) -> Pair:
    """A number for both sides, or one for each, as rows and columns."""
    first, second = (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]
    return int(first), int(second)


def convolution(
    all_tags: Tags,
    operation: Operation,
    /,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    tag = all_tags.tag_of_maps(input, "a convolution")
    kernel, steps, dilations = pair(tuple(weight.shape[2:])), pair(stride), pair(dilation)
    if padding == "same":
        if any(d * (k - 1) % 2 for k, d in zip(kernel, dilations, strict=True)):
            raise Unsupported("the network pads a convolution of even size on one side only")
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True))
    paddings = (0, 0) if padding == "valid" else pair(padding)
    if kernel != (1, 1) or paddings != (0, 0):
        input = all_tags.blank(input)
    out = operation(input, weight, bias, steps, paddings, dilations, groups)
    return all_tags.tag(out, Tag(_behind(tag, kernel, paddings, dilations, steps)))


def max_pool(
    all_tags: Tags,
    operation: Operation,
    /,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    tag = all_tags.tag_of_maps(input, "max pooling")
    kernel, steps = pair(kernel_size), pair(stride or kernel_size)
    paddings, dilations = pair(padding), pair(dilation)
    if ceil_mode or return_indices:
        raise Unsupported("the network calls max pooling with ceil_mode or return_indices")
    extent = _behind(tag, kernel, paddings, dilations, steps)
    if kernel == (1, 1):
        out = F.max_pool2d(input, kernel, steps, paddings)
        return all_tags.tag(out, Tag(extent, blank=tag.blank, positive=tag.positive))
    if tag.positive:  # every window holds a cell of the image, so a zero outside never exceeds its maximum
        out = F.max_pool2d(all_tags.blank(input), kernel, steps, paddings, dilations)
        return all_tags.tag(out, Tag(extent, positive=True))
    lowest = torch.full_like(input[:1, :1, :1, :1], torch.finfo(input.dtype).min)
    out = F.max_pool2d(torch.where(tag.extent.inside, input, lowest), kernel, steps, paddings, dilations)
    # set directly, because multiplying the lowest number would overflow
    return all_tags.blank(all_tags.tag(out, Tag(extent)))


def average_pool(
    all_tags: Tags,
    operation: Operation,
    /,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    tag = all_tags.tag_of_maps(input, "average pooling")
    kernel, steps, paddings = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    if ceil_mode:
        raise Unsupported("the network calls average pooling with ceil_mode")
    out = F.avg_pool2d(all_tags.blank(input), kernel, steps, paddings, divisor_override=divisor_override)
    if not count_include_pad and divisor_override is None:
        share = F.avg_pool2d(tag.extent.inside.to(input.dtype), kernel, steps, paddings)
        out = out / share.clamp(min=1 / math.prod(kernel))
    return all_tags.tag(out, Tag(_behind(tag, kernel, paddings, (1, 1), steps), positive=tag.positive))


def pad(
    all_tags: Tags, operation: Operation, /, input: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    tag = all_tags.tag_of_maps(input, "padding")
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    if mode != "constant" or value or len(pad) > 4 or min(pad) < 0:
        raise Unsupported("the network pads a feature map other than with zeros at its sides")
    out = F.pad(all_tags.blank(input), pad)
    extent = tag.extent.after((-top - bottom, -left - right), (1, 1))
    return all_tags.tag(out, Tag(extent, blank=True, positive=tag.positive))


def _behind(tag: Tag, kernel: Pair, padding: Pair, dilation: Pair, step: Pair) -> Extent:
    """The extent of the map that a window of this form computes."""
    reach = tuple(d * (k - 1) - 2 * p for k, p, d in zip(kernel, padding, dilation, strict=True))
    return tag.extent.after((reach[0], reach[1]), step)
