"""Interpolation to another map's size, or by a whole factor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from faster_rcnn.torchvision_adapter.extents.extent import Extent, Unsupported
from faster_rcnn.torchvision_adapter.extents.operations import Operation
from faster_rcnn.torchvision_adapter.extents.tags import Tag, Tags, flat
from faster_rcnn.torchvision_adapter.extents.windows import pair


def interpolate(
    all_tags: Tags,
    operation: Operation,
    /,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    **more: Any,
) -> Tensor:
    tag = all_tags.tag_of_maps(input, "interpolation")
    out = operation(input, size, scale_factor, mode, **more)
    extent = all_tags.extent_of_size(out.shape[2], out.shape[3])
    if extent is None and scale_factor is not None and all(float(one).is_integer() for one in flat((scale_factor,))):
        factor = pair(int(scale_factor) if isinstance(scale_factor, float) else scale_factor)
        if all(stride % times == 0 for stride, times in zip(tag.extent.stride, factor, strict=True)):
            extent = tag.extent.magnified(factor, (out.shape[2], out.shape[3]))
    if extent is None or mode != "nearest" or not _nearest_cell_is_fixed(tag.extent, extent):
        raise Unsupported(
            f"the network resizes a feature map by {mode!r} interpolation to a size that depends on the canvas; only "
            "the nearest cell, between maps whose strides are whole multiples, can be made independent of the padding"
        )
    return all_tags.tag(out, Tag(extent, blank=tag.blank and tag.extent.whole(), positive=tag.positive))


def _nearest_cell_is_fixed(coarse: Extent, fine: Extent) -> bool:
    """Whether the nearest cell follows from the strides alone: they are equal, double, or whole multiples."""
    if coarse is fine:
        return True
    if not (coarse.rounded_up and fine.rounded_up):
        return False
    ratios = {c / f for c, f in zip(coarse.stride, fine.stride, strict=True)}
    return ratios <= {1.0, 2.0} or (coarse.whole() and all(ratio.is_integer() for ratio in ratios))
