"""Operations that look at all cells of an image at once: means and group normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faster_rcnn.torchvision_adapter.extents.extent import Extent, Unsupported
from faster_rcnn.torchvision_adapter.extents.operations import Operation
from faster_rcnn.torchvision_adapter.extents.tags import Tag, Tags
from faster_rcnn.torchvision_adapter.extents.windows import pair


def adaptive_average_pool(all_tags: Tags, operation: Operation, /, input: Tensor, output_size: Any) -> Tensor:
    tag = all_tags.tag_of_maps(input, "adaptive average pooling")
    if pair(output_size) != (1, 1):
        raise Unsupported(
            f"the network pools adaptively to {output_size}; only pooling to a single cell can be made independent of "
            "the padding"
        )
    return _mean_of_image(input, tag.extent)


def mean(
    all_tags: Tags, operation: Operation, /, input: Tensor, dim: Any = None, keepdim: bool = False, **more: Any
) -> Tensor:
    tag = all_tags.tag_of_maps(input, "a mean")
    axes = {axis % 4 for axis in ((dim,) if isinstance(dim, int) else dim or (0, 1, 2, 3))}
    if axes == {1}:
        return all_tags.tag(operation(input, dim, keepdim=True), Tag(tag.extent))
    if axes != {2, 3}:
        raise Unsupported(f"the network computes a mean over the axes {sorted(axes)} of a feature map")
    of_image = _mean_of_image(input, tag.extent)
    return of_image if keepdim else of_image.flatten(1)


def group_norm(
    all_tags: Tags,
    operation: Operation,
    /,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalisation whose statistics are those of the image, not of the canvas."""
    tag = all_tags.tag_of_maps(input, "group normalisation")
    inside = tag.extent.inside.to(torch.float32)[:, None]  # [N, 1, 1, h, w]
    grouped = input.unflatten(1, (num_groups, input.shape[1] // num_groups)).to(torch.float32)
    count = inside.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1) * grouped.shape[2]
    center = (grouped * inside).sum(dim=(2, 3, 4), keepdim=True) / count
    variance = ((grouped - center).square() * inside).sum(dim=(2, 3, 4), keepdim=True) / count
    out = ((grouped - center) * torch.rsqrt(variance + eps)).flatten(1, 2).to(input.dtype)
    if weight is not None:
        out = out * weight[:, None, None]
    if bias is not None:
        out = out + bias[:, None, None]
    return all_tags.tag(out, Tag(tag.extent))


def _mean_of_image(maps: Tensor, extent: Extent) -> Tensor:
    """The mean over the cells of each image: [N, C, 1, 1].

    Summed in float64: the order of the summands follows from the canvas, and in float32 it would show in the result.
    """
    inside = extent.inside
    total = (maps * inside.to(maps.dtype)).sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
    count = (extent.cells[:, 0] * extent.cells[:, 1]).clamp(min=1)[:, None, None, None]
    return (total / count).to(maps.dtype)
