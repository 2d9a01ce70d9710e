"""What is known about the tensors that were computed from the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from faster_rcnn.detector.graph_form import for_cuda
from faster_rcnn.torchvision_adapter.extents.extent import Extent, Pair, Unsupported
from faster_rcnn.torchvision_adapter.internals import WeakIdKeyDictionary

ROWS_AND_COLUMNS = (2, 3)  # their axes in a feature map [N, C, h, w]


@dataclass(frozen=True)
class Tag:
    """What is known of one tensor.

    extent: of the images on it;  axes: of its rows and columns;  blank: whether it is zero outside the images;
    positive: whether no value is negative;  activation: the function that computed it and what it was computed from.
    """

    extent: Extent
    axes: Pair = ROWS_AND_COLUMNS
    blank: bool = False
    positive: bool = False
    activation: tuple[Callable[[Tensor], Tensor], Tensor] | None = None


class Tags:
    """The tags of all tensors that were computed from the images; what the rules of operations work on."""

    def __init__(self) -> None:
        self._tags: Any = WeakIdKeyDictionary()
        self._blanked: Any = WeakIdKeyDictionary()
        self._extents: list[Extent] = []

    def track(self, maps: Tensor, extent: Extent, blank: bool = False) -> Tensor:
        """Starts to watch `maps` [N, C, h, w], on which the images have this extent."""
        return self.tag(maps, Tag(extent, blank=blank))

    def extent_of(self, maps: Tensor) -> Extent:
        """How far the images reach on `maps`. Raises Unsupported if `maps` was not computed from tracked tensors."""
        tag = self._tags.get(maps)
        if tag is None or tag.axes != ROWS_AND_COLUMNS:
            raise Unsupported("the network's output is not a feature map [N, C, h, w] computed from the images")
        return tag.extent

    def tag(self, tensor: Tensor, tag: Tag) -> Tensor:
        """Stores the tag of a tensor, and returns the tensor."""
        self._tags[tensor] = tag
        self._blanked.pop(tensor, None)  # an operation in place has made another map of it
        if not any(tag.extent is one for one in self._extents):
            self._extents.append(tag.extent)
        return tensor

    def tag_of(self, value: Any) -> Tag | None:
        """The tag of a value; None if it was not computed from the images."""
        return self._tags.get(value) if isinstance(value, Tensor) else None

    def tag_of_maps(self, value: Any, what: str) -> Tag:
        """The tag of a feature map. Raises Unsupported, naming the operation `what`, if `value` is not one."""
        tag = self.tag_of(value)
        if tag is None or tag.axes != ROWS_AND_COLUMNS or value.ndim != 4:
            raise Unsupported(f"the network calls {what} on something that is not a feature map [N, C, h, w]")
        return tag

    def blank(self, maps: Tensor) -> Tensor:
        """`maps` with zeros outside the images."""
        tag = self._tags[maps]
        if tag.blank:
            return maps
        if maps not in self._blanked:
            # On a CPU, ONNX Runtime fuses an addition there with the convolution before it.
            if tag.activation is not None and not for_cuda():
                activate, before = tag.activation
                out = activate(before + tag.extent.outside_offset(before.shape[1], before.dtype))
            else:
                out = maps * tag.extent.inside.to(maps.dtype)
            self._blanked[maps] = self.tag(out, Tag(tag.extent, blank=True, positive=tag.positive))
        return self._blanked[maps]

    def extent_of_size(self, height: Any, width: Any) -> Extent | None:
        """The extent of the maps of height × width cells that were seen so far."""
        return next((extent for extent in self._extents if extent.same_size(height, width)), None)

    def forget_input(self, overwritten: Any) -> None:
        """An activation whose input is about to be overwritten can no longer be computed again from it."""
        for tensor, tag in list(self._tags.items()):
            if tag.activation is not None and tag.activation[1] is overwritten:
                self._tags[tensor] = replace(tag, activation=None)


def flat(values: Any) -> Iterator[Any]:
    """The values in nested tuples, lists and dictionaries."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from flat(value)
    elif isinstance(values, dict):
        yield from flat(tuple(values.values()))
    else:
        yield values
