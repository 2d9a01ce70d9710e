"""Only the real ones of padded regions, so that the head computes nothing for the rest.

N  images;  P  regions an image, padded;  M  real regions in all;  C, S, T  channels, height and width of a region.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def real_rows(count: Tensor, padded: int) -> tuple[Tensor, Tensor]:
    """Where the real regions stand among N * P, and where each of N * P stands among the real ones.

    count: int64 [N], the first of an image's P = `padded` regions that are real.
    Returns int64 [M + 1] and int64 [N, P]. The one row more is the first region once again: where no image has any, a
    layer of no rows would be left. Of a region that is not real the second names any row.
    """
    real = torch.arange(padded, device=count.device) < count[:, None]
    rows = torch.nonzero(real.flatten())[:, 0]
    rows = torch.cat([rows, torch.zeros_like(count[:1])])
    before = torch.cumsum(count, dim=0) - count
    back = before[:, None] + torch.arange(padded, device=count.device)
    return rows, torch.where(real, back, torch.zeros_like(back))


def linear_of_channels_last(layer: nn.Linear, regions: Tensor) -> Tensor:
    """What `layer`, whose inputs are regions of [C, S, T] laid out flat, makes of regions [M, S, T, C].

    Its weights are reordered, once when a graph is loaded, and not the many regions, every time.
    """
    S, T, C = regions.shape[1:]
    weight = layer.weight.unflatten(1, (C, S, T)).permute(0, 2, 3, 1).flatten(1)
    return F.linear(regions.flatten(1), weight, layer.bias)
