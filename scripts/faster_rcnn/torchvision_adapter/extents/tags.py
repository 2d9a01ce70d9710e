"""What is known of a tensor that was computed from the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from faster_rcnn.torchvision_adapter.extents.extent import Extent, Pair

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


def flat(values: Any) -> Iterator[Any]:
    """The values in nested tuples, lists and dictionaries."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from flat(value)
    elif isinstance(values, dict):
        yield from flat(tuple(values.values()))
    else:
        yield values
