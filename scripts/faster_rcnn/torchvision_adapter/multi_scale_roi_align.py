"""torchvision's MultiScaleRoIAlign on a canvas, as if each image were alone on its tight canvas.

Its samples lie half a cell off (`aligned=False`), and it widens every region to at least one cell. Up to one cell
beyond the last cell of a map it samples that cell's value, and further out zero. So its result depends on where the map
ends, which on a canvas differs from image to image.

N  images;  P  regions per image;  M  regions in all;  C, h, w  feature map;  S  output rows, T  output columns.
Regions are x1, y1, x2, y2 in canvas pixels. cells: int64 [N, 2], the rows and columns of each image on a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

# Cells repeated beyond an image's last one: samples up to one cell beyond it count, and interpolate with the next cell.
FRAME = 2


@dataclass(frozen=True)
class Sampling:
    """How regions are pooled from the maps.

    size: S, T;  ratio: samples along a bin's side, 0 for one per cell;  strides: of the maps, finest first;
    canonical_side: in pixels, of a region that belongs to the level canonical_level.
    """

    size: tuple[int, int]
    ratio: int
    strides: tuple[int, ...]
    canonical_side: float
    canonical_level: int

    @property
    def maps(self) -> int:
        """How many of the maps are used: torchvision takes only the first if the strides are all equal."""
        return 1 if self.strides[0] == self.strides[-1] else len(self.strides)


def align_on_one_map(features: Tensor, rois: Tensor, cells: Tensor, sampling: Sampling) -> Tensor:
    """Pools regions [N, P, 4] from one small map by two matrix products: [N, P, S, T, C].

    `roi_pooling.roi_align` explains how. The work grows with the number of cells, so `align_on_all_maps` is faster for
    a large map.
    """
    N, C, h, w = features.shape
    P = rois.shape[1]
    (S, T), stride = sampling.size, sampling.strides[0]
    rows = _weights(rois[..., 1], rois[..., 3], h, cells[:, 0], S, stride, sampling.ratio).to(features.dtype)
    columns = _weights(rois[..., 0], rois[..., 2], w, cells[:, 1], T, stride, sampling.ratio).to(features.dtype)
    by_row = features.permute(0, 2, 3, 1).reshape(N, h, w * C)
    in_rows = torch.matmul(rows.reshape(N, P * S, h), by_row).reshape(N, P, S, w, C)
    return torch.matmul(columns[:, :, None], in_rows)


def _weights(start: Tensor, end: Tensor, length: int, cells: Tensor, size: int, stride: int, ratio: int) -> Tensor:
    """The weight of each of `length` cells in each of `size` bins between `start` and `end` [N, P]."""
    first = start / stride
    bin_side = ((end - start) / stride).clamp(min=1) / size
    offsets = (torch.arange(size * ratio, device=start.device).to(start.dtype) + 0.5) / ratio
    positions = first[..., None] + offsets * bin_side[..., None]  # [N, P, size * ratio]
    reach = cells[:, None, None].to(start.dtype)
    within = (positions <= reach).to(start.dtype)
    here = torch.arange(length, device=start.device).to(start.dtype)
    weights = F.relu(1 - (torch.minimum(positions, reach - 1)[..., None] - here).abs()) * within[..., None]
    return weights.unflatten(2, (size, ratio)).mean(dim=3)


def align_on_all_maps(
    maps: Sequence[Tensor], cells: Sequence[Tensor], rois: Tensor, images: Tensor, sampling: Sampling
) -> Tensor:
    """Pools each region [M, 4], of the image numbered `images` [M], from the map of its level: [M, C, S, T].

    One RoIAlign pools from all maps. They lie below each other on one sheet, and beyond an image's last row and column
    these are repeated.
    """
    width = maps[0].shape[3]
    sheet, tops, row = [], [], 0
    for one, reach in zip(maps, cells, strict=True):
        sheet.append(F.pad(frame(one, reach), (0, width - one.shape[3])))
        tops.append(row)
        row = row + one.shape[2] + FRAME
    level = level_of(rois, sampling)
    place = level.clamp(max=len(maps) - 1)
    scale = rois.new_tensor([1 / stride for stride in sampling.strides])[place]
    top = torch.stack([(place == number).to(rois.dtype) * first for number, first in enumerate(tops)]).sum(dim=0)
    in_cells = rois * scale[:, None]
    nothing = torch.zeros_like(top)
    moved = in_cells + torch.stack([nothing, top, nothing, top], dim=1)
    pooled = torchvision.ops.roi_align(
        torch.cat(sheet, dim=2), torch.cat([images[:, None].to(rois.dtype), moved], dim=1), sampling.size, 1.0,
        sampling.ratio, aligned=False,
    )  # fmt: skip
    of_map = torch.stack(list(cells))[place, images].to(rois.dtype)  # [M, 2]
    rows = _share_within(in_cells[:, 1], in_cells[:, 3], of_map[:, 0], sampling.size[0], sampling.ratio)
    columns = _share_within(in_cells[:, 0], in_cells[:, 2], of_map[:, 1], sampling.size[1], sampling.ratio)
    there = (level < len(maps)).to(rois.dtype)[:, None]
    return pooled * ((rows * there)[:, None, :, None] * columns[:, None, None, :])


def frame(features: Tensor, cells: Tensor) -> Tensor:
    """`features` [N, C, h, w] as [N, C, h + FRAME, w + FRAME], each image's last row and column repeated beyond it."""
    N, C, h, w = features.shape
    last = (cells - 1)[:, :, None, None, None]  # [N, 2, 1, 1, 1]
    below = torch.arange(h + FRAME, device=cells.device) >= cells[:, 0:1]
    right = torch.arange(w + FRAME, device=cells.device) >= cells[:, 1:2]
    last_row = torch.gather(features, 2, last[:, 0].expand(N, C, 1, w))
    tall = torch.where(below[:, None, :, None], last_row, F.pad(features, (0, 0, 0, FRAME)))
    last_column = torch.gather(tall, 3, last[:, 1].expand(N, C, h + FRAME, 1))
    return torch.where(right[:, None, None, :], last_column, F.pad(tall, (0, FRAME)))


def _share_within(start: Tensor, end: Tensor, reach: Tensor, size: int, ratio: int) -> Tensor:
    """The share of each bin's samples that lie no further than `reach` [M]: [M, size].

    Only a region widened to one cell has samples beyond it. They are so close together that all others have the last
    cell's value, so the mean is that value times their share.
    """
    ratio = ratio or 1  # a region of one cell is sampled once
    bin_side = (end - start).clamp(min=1) / size
    offsets = (torch.arange(size * ratio, device=start.device).to(start.dtype) + 0.5) / ratio
    positions = start[:, None] + offsets * bin_side[:, None]
    return (positions <= reach[:, None]).to(start.dtype).unflatten(1, (size, ratio)).mean(dim=2)


def level_of(rois: Tensor, sampling: Sampling) -> Tensor:
    """The map that each region [M, 4] belongs to (Lin et al. 2017, eq. 1), int64 [M], found by comparing areas.

    torchvision counts octaves from the first map's stride to the last one's. If a stride in between is missing, the
    number may be that of a map that does not exist; torchvision's result for such a region is zero.
    """
    first, last = (stride.bit_length() - 1 for stride in (sampling.strides[0], sampling.strides[-1]))
    sides = [
        sampling.canonical_side * 2.0 ** (octave - sampling.canonical_level - 1e-6)
        for octave in range(first + 1, last + 1)
    ]
    areas = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    return (areas[:, None] >= areas.new_tensor([side**2 for side in sides])).to(torch.int64).sum(dim=1)
