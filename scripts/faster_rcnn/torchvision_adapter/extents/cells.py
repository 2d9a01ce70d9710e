"""Operations that compute each cell by itself: activations, sums, products, conversions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from faster_rcnn.torchvision_adapter.extents.extent import Unsupported
from faster_rcnn.torchvision_adapter.extents.operations import Operation
from faster_rcnn.torchvision_adapter.extents.tags import ROWS_AND_COLUMNS, Tag, Tags, flat
from faster_rcnn.torchvision_adapter.internals import statically_known_true


@dataclass(frozen=True)
class CellByCell:
    """The rule of such an operation.

    None of these operations may turn a finite number outside an image into NaN or infinity, which masking by a product
    with zero would not remove.

    positive: its results are never negative;  keeps_zero: zero gives zero;  keeps_sign: positive gives positive;
    joins: how it joins several maps.
    """

    positive: bool = False
    keeps_zero: bool = False
    keeps_sign: bool = False
    joins: Literal["sum", "product", "quotient"] | None = None

    def __call__(self, all_tags: Tags, operation: Operation, /, *args: Any, **kwargs: Any) -> Tensor:
        values = list(flat((args, kwargs)))
        known = [tag for value in values if (tag := all_tags.tag_of(value)) is not None]
        first = known[0]
        for other in known[1:]:
            if not other.extent.same_size(*first.extent.canvas):
                raise Unsupported(f"the network joins maps of {other.extent.canvas} and {first.extent.canvas} cells")
        maps = [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
        tags = [all_tags.tag_of(value) for value in maps]
        for value, tag in zip(maps, tags, strict=True):
            if tag is None and not all(statically_known_true(side == 1) for side in value.shape[2:]):
                raise Unsupported(
                    f"the network calls {operation.name} on a feature map and on a tensor that was not computed from "
                    "the images"
                )
        if self.joins == "quotient" and all_tags.tag_of(args[-1]) is not None:
            raise Unsupported("the network divides by a feature map, which may be zero outside the images")
        numbers = any(isinstance(value, (int, float)) for value in values)
        out = operation(*args, **kwargs)
        return all_tags.tag(out, Tag(first.extent, first.axes, self._blank(first, tags), self._positive(tags, numbers)))

    def _blank(self, first: Tag, tags: list[Tag | None]) -> bool:
        blank = [tag is not None and tag.blank for tag in tags]
        if self.joins == "sum":
            return len(tags) > 1 and all(blank)
        if self.joins == "product":
            return any(blank)
        return self.keeps_zero and first.blank

    def _positive(self, tags: list[Tag | None], numbers: bool) -> bool:
        keeps = self.keeps_sign or (self.joins in ("sum", "product") and not numbers)
        return self.positive or (keeps and all(tag is not None and tag.positive for tag in tags))


@dataclass(frozen=True)
class Activation:
    """The rule of an activation that turns very low numbers into zero.

    Its result can be blanked before the activation, by adding a very low number outside the images.

    function: the activation, not in place;  positive: its results are never negative.
    """

    function: Callable[[Tensor], Tensor]
    positive: bool = False

    def __call__(self, all_tags: Tags, operation: Operation, /, *args: Any, **kwargs: Any) -> Tensor:
        maps = args[0] if args else kwargs["input"]
        tag = all_tags.tag_of(maps)
        assert tag is not None
        known = None
        if tag.axes == ROWS_AND_COLUMNS and not tag.blank and kwargs.get("approximate", "none") == "none":
            overwrites = operation.overwritten(args, kwargs) is not None
            known = (self.function, maps.clone() if overwrites else maps)
        out = operation(*args, **kwargs)
        return all_tags.tag(out, Tag(tag.extent, tag.axes, tag.blank, self.positive, known))
