"""The extent of the images on feature maps of one size, and how a window changes it.

N  images;  C  channels;  h, w  a map's height and width on the canvas, in cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from faster_rcnn.detector.operators import quotient
from faster_rcnn.detector.padding import outside_offset
from faster_rcnn.torchvision_adapter.internals import statically_known_true

Pair = tuple[int, int]  # of rows and columns


class Unsupported(ValueError):  # noqa: N818  the word for it
    """The network does something that cannot be kept within an image; the message names it."""


@dataclass(eq=False)
class Extent:
    """How far the images reach on maps of one size.

    cells: int64 [N, 2], rows and columns of each image;
    canvas: h, w;
    stride: pixels of the canvas per cell;
    rounded_up: whether an image of s pixels reaches over ceil(s / stride) cells, where s is a multiple of `divisor`;
    image: int64 [N, 2], height and width of the tight canvases in pixels; None on the canvas itself, whose `cells` they
    are.
    """

    cells: Tensor
    canvas: tuple[Any, ...]
    stride: Pair
    rounded_up: bool
    divisor: int
    image: Tensor | None = None
    _inside: Tensor | None = None
    _outside_offsets: dict[Any, Tensor] = field(default_factory=dict)
    _after: dict[Any, Extent] = field(default_factory=dict)

    @property
    def of_image(self) -> Tensor:
        """int64 [N, 2]: height and width in pixels of the tight canvases that this extent was derived from."""
        return self.cells if self.image is None else self.image

    @property
    def inside(self) -> Tensor:
        """Bool [N, 1, h, w]: which cells belong to an image."""
        if self._inside is None:
            rows, columns = (torch.arange(side, device=self.cells.device) for side in self.canvas)
            here = (rows < self.cells[:, 0:1])[:, :, None] & (columns < self.cells[:, 1:2])[:, None, :]
            self._inside = here[:, None]
        return self._inside

    def outside_offset(self, channels: int, dtype: torch.dtype) -> Tensor:
        """[N, channels, h, w]: added before an activation, it makes the activation zero outside the images.

        See `detector/padding.py`.
        """
        if (channels, dtype) not in self._outside_offsets:
            self._outside_offsets[channels, dtype] = outside_offset(self.inside, channels, dtype)
        return self._outside_offsets[channels, dtype]

    def after(self, reach: Pair, step: Pair) -> Extent:
        """The extent of the map that a sliding window computes.

        reach: how many cells the window needs beyond its first, less its padding on both sides;  step: its stride.
        The size of the new map follows from that of the old one. Reading the size from the features would, in a graph,
        keep ONNX Runtime from fusing a convolution with the normalisation behind it.
        """
        if reach == (0, 0) and step == (1, 1):
            return self
        if (reach, step) not in self._after:
            if reach[0] == reach[1] and step[0] == step[1]:
                cells = _positions(self.cells, reach[0], step[0])
            else:
                sides = zip(self.cells.unbind(1), reach, step, strict=True)
                cells = torch.stack([_positions(*side) for side in sides], dim=1)
            stride = (self.stride[0] * step[0], self.stride[1] * step[1])
            same = self.rounded_up and reach == (0, 0)
            tiled = self.whole() and all(
                0 <= r < s and self.divisor % side == 0 for r, s, side in zip(reach, step, stride, strict=True)
            )  # non-overlapping windows tile the image exactly
            canvas = tuple((side - 1 - r) // s + 1 for side, r, s in zip(self.canvas, reach, step, strict=True))
            self._after[reach, step] = Extent(cells, canvas, stride, same or tiled, self.divisor, self.of_image)
        return self._after[reach, step]

    def magnified(self, factor: Pair, canvas: tuple[Any, ...]) -> Extent:
        """The extent where each cell has become `factor` cells, on a map of `canvas` cells.

        factor: divides the stride.
        """
        stride = (self.stride[0] // factor[0], self.stride[1] // factor[1])
        cells = self.cells * self.cells.new_tensor(factor)
        return Extent(cells, canvas, stride, self.whole(), self.divisor, self.of_image)

    def whole(self) -> bool:
        """Whether every cell of an image stands for exactly `stride` pixels of it.

        That holds where the sides of the tight canvases, multiples of `divisor`, are multiples of the stride.
        """
        return self.rounded_up and all(self.divisor % side == 0 for side in self.stride)

    def same_size(self, height: Any, width: Any) -> bool:
        """Whether its maps are known to be height × width; the sizes may be symbols of an export."""
        return all(statically_known_true(a == b) for a, b in zip(self.canvas, (height, width), strict=True))


def _positions(cells: Tensor, reach: int, step: int) -> Tensor:
    """How many positions a window has among `cells`."""
    return quotient((cells - reach - 1).clamp(min=0), step) + 1 if step > 1 else cells - reach
