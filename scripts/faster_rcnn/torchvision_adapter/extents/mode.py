"""The mode that watches the calls of a network and applies the rule of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from faster_rcnn.torchvision_adapter.extents.extent import Extent, Unsupported
from faster_rcnn.torchvision_adapter.extents.table import FUNCTIONS, RULES
from faster_rcnn.torchvision_adapter.extents.tags import ROWS_AND_COLUMNS, Tag, flat
from faster_rcnn.torchvision_adapter.internals import WeakIdKeyDictionary


class AsIfAlone(TorchFunctionMode):
    """While it is entered, what is computed from `track`ed tensors depends on each image alone.

    An operation on them that has no rule raises Unsupported.
    """

    def __init__(self) -> None:
        super().__init__()
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
            if tag.activation is not None:  # ONNX Runtime fuses an addition there with the convolution before it
                activate, before = tag.activation
                out = activate(before + tag.extent.outside_offset(before.shape[1], before.dtype))
            else:
                out = maps * tag.extent.inside.to(maps.dtype)
            self._blanked[maps] = self.tag(out, Tag(tag.extent, blank=True, positive=tag.positive))
        return self._blanked[maps]

    def extent_of_size(self, height: Any, width: Any) -> Extent | None:
        """The extent of the maps of height × width cells that were seen so far."""
        return next((extent for extent in self._extents if extent.same_size(height, width)), None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if all(self.tag_of(value) is None for value in flat((args, kwargs))):
            return func(*args, **kwargs)
        operation = FUNCTIONS.get(func)
        if operation is not None:
            self._forget_input(operation.overwritten(args, kwargs))
            return RULES[operation.name](self, operation, *args, **kwargs)
        out = func(*args, **kwargs)
        if any(isinstance(value, Tensor) for value in flat(out)):
            raise Unsupported(
                f"the network calls {resolve_name(func) or func.__name__}, and it is unknown whether that mixes "
                "neighbouring cells of a feature map; if it does, a canvas larger than the image changes the answer"
            )
        return out  # a shape, type or device

    def _forget_input(self, overwritten: Any) -> None:
        """An activation whose input is about to be overwritten can no longer be computed again from it."""
        for tensor, tag in list(self._tags.items()):
            if tag.activation is not None and tag.activation[1] is overwritten:
                self._tags[tensor] = replace(tag, activation=None)
