"""Operations on the channels of each cell: joining, splitting, moving them, and layers that see them last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from faster_rcnn.torchvision_adapter.extents.extent import Unsupported
from faster_rcnn.torchvision_adapter.extents.operations import Operation
from faster_rcnn.torchvision_adapter.extents.tags import Tag, Tags, flat


def concatenation(all_tags: Tags, operation: Operation, /, tensors: Any, dim: int = 0, **more: Any) -> Tensor:
    tags = [all_tags.tag_of_maps(one, "a concatenation") for one in tensors]
    dim = more.pop("axis", dim)
    if dim % 4 != 1 or not all(tag.extent.same_size(*tags[0].extent.canvas) for tag in tags):
        raise Unsupported("the network joins feature maps other than by their channels")
    blank, positive = all(tag.blank for tag in tags), all(tag.positive for tag in tags)
    return all_tags.tag(operation(tensors, dim), Tag(tags[0].extent, blank=blank, positive=positive))


def parts(all_tags: Tags, operation: Operation, /, input: Tensor, number: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """`chunk` and `split`."""
    tag = all_tags.tag_of_maps(input, operation.name)
    if dim % 4 != 1:
        raise Unsupported("the network splits feature maps other than by their channels")
    of_part = Tag(tag.extent, blank=tag.blank, positive=tag.positive)
    return tuple(all_tags.tag(one, of_part) for one in operation(input, number, dim))


def permutation(all_tags: Tags, operation: Operation, /, input: Tensor, *dims: Any) -> Tensor:
    tag = all_tags.tag_of(input)
    assert tag is not None
    order = [axis % input.ndim for axis in flat(dims)]
    axes = order.index(tag.axes[0]), order.index(tag.axes[1])
    return all_tags.tag(operation(input, *dims), Tag(tag.extent, axes))


def of_channels_last(all_tags: Tags, operation: Operation, /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Linear layers and layer normalisation of [N, h, w, C], which see the channels of one cell."""
    tag = all_tags.tag_of(input)
    if tag is None or tag.axes != (1, 2) or input.ndim != 4:
        raise Unsupported("the network calls a linear layer or layer normalisation across the cells of a feature map")
    if operation.name == "layer_norm" and len(kwargs.get("normalized_shape", args[0] if args else ())) != 1:
        raise Unsupported("the network normalises across the cells of a feature map")
    return all_tags.tag(operation(input, *args, **kwargs), Tag(tag.extent, tag.axes))
