"""Drops padding rows before the head and puts the results back afterwards.

N  images;  P  rows per image, padded;  M  number of real rows;  C, S, T  channels, height and width of a region.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def real_rows(count: Tensor, padded: int) -> tuple[Tensor, Tensor]:
    """The indices of the real rows among all N * P, and the position of each of the N * P rows among the real ones.

    count: int64 [N], number of real rows per image, which precede the padding;  padded: P.
    Returns int64 [M + 1] and int64 [N, P]. An extra row repeats row 0, so that the head never gets an empty batch.
    The positions of padding rows are arbitrary.
    """
    real = torch.arange(padded, device=count.device) < count[:, None]
    rows = torch.nonzero(real.flatten())[:, 0]
    rows = torch.cat([rows, torch.zeros_like(count[:1])])
    before = torch.cumsum(count, dim=0) - count
    positions = before[:, None] + torch.arange(padded, device=count.device)
    return rows, torch.where(real, positions, torch.zeros_like(positions))


def linear_of_channels_last(layer: nn.Linear, regions: Tensor) -> Tensor:
    """Applies `layer`, which expects flattened [C, S, T], to regions [M, S, T, C].

    This reorders the weights instead of the regions. In a graph the weights are reordered only once, when it is loaded.
    """
    S, T, C = regions.shape[1:]
    weight = layer.weight.unflatten(1, (C, S, T)).permute(0, 2, 3, 1).flatten(1)
    return F.linear(regions.flatten(1), weight, layer.bias)
