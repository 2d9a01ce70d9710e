"""Drops padding rows before the head and puts the results back afterwards.

N  images;  P  rows per image, padded;  M  number of real rows;  C, S, T  channels, height and width of a region.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faster_rcnn.detector.graph_form import for_cuda
from faster_rcnn.detector.operators import quotient


class Rows(NamedTuple):
    """Which of N * P rows enter the head.

    numbers: int64 [M + 1], None if all do;  positions: int64 [N, P], where each row is among those that do;
    images: int64 [M + 1], the image of each row that does.
    """

    numbers: Tensor | None
    positions: Tensor | None
    images: Tensor

    def take(self, values: Tensor) -> Tensor:
        """The rows of `values` [N * P, …] that enter the head."""
        return values if self.numbers is None else torch.index_select(values, 0, self.numbers)

    def put_back(self, *results: Tensor) -> list[Tensor]:
        """Each of the head's results [M + 1, …] as [N * P, …]; the results of padding rows are arbitrary."""
        if self.positions is None:
            return list(results)
        positions = self.positions.reshape(-1)
        return [torch.index_select(one, 0, positions) for one in results]


def real_rows(count: Tensor, padded: int) -> Rows:
    """The real rows among all N * P.

    count: int64 [N], number of real rows per image, which precede the padding;  padded: P.
    An extra row repeats row 0, so that the head never gets an empty batch.
    In a graph for CUDA all rows enter the head. Otherwise the host would wait for their number, and with every new
    number cuDNN would choose and prepare its kernels again, whose last bits differ.
    """
    if for_cuda():
        images = torch.arange(count.shape[0], device=count.device)[:, None].expand(-1, padded)
        return Rows(None, None, images.reshape(-1))
    real = torch.arange(padded, device=count.device) < count[:, None]
    rows = torch.nonzero(real.flatten())[:, 0]
    rows = torch.cat([rows, torch.zeros_like(count[:1])])
    before = torch.cumsum(count, dim=0) - count
    positions = before[:, None] + torch.arange(padded, device=count.device)
    return Rows(rows, torch.where(real, positions, torch.zeros_like(positions)), quotient(rows, padded))


def linear_of_channels_last(layer: nn.Linear, regions: Tensor) -> Tensor:
    """Applies `layer`, which expects flattened [C, S, T], to regions [M, S, T, C].

    This reorders the weights instead of the regions. In a graph the weights are reordered only once, when it is loaded.
    """
    S, T, C = regions.shape[1:]
    weight = layer.weight.unflatten(1, (C, S, T)).permute(0, 2, 3, 1).flatten(1)
    return F.linear(regions.flatten(1), weight, layer.bias)
