"""Region features of a fixed size: RoI max pooling (Girshick 2015, section 2.1) and RoIAlign (He et al. 2017).

N  images;  P  regions per image;  C, h, w  feature map;  S  output size.  Regions are x1, y1, x2, y2 in canvas pixels.
Both expect features that are zero outside the image, and return the same result on every canvas. With a feature
pyramid, each region is pooled from one of the maps (Lin et al. 2017, section 4.2).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

# Portable RoI max pooling uses windows of 2⁰ to 2³ cells per side. Along each side, two windows cover a bin.
WINDOW_LEVELS = 4
LONGEST_BIN = 2**WINDOW_LEVELS


def roi_align(features: Tensor, rois: Tensor, size: int, stride: int, samples: int = 2) -> Tensor:
    """RoIAlign: the mean of `samples`² bilinear samples in each of S×S bins (half-pixel aligned).

    Sampling on a regular grid is separable: a bin's value is its row weights times the features times its column
    weights. So it can be written as two batched matrix products, which run at the speed of a convolution on every
    device. On a CPU ONNX Runtime's RoiAlign operator takes twice as long.
    Equals `torchvision.ops.roi_align(aligned=True)` on features padded with one row and one column of zeros at the end,
    which a larger canvas has anyway.

    features: [N, C, h, w];  rois: [N, P, 4];  size: S.  Returns [N, P, C, S, S].
    """
    N, C, h, w = features.shape
    P = rois.shape[1]
    row_weights = _sampling_weights(rois[..., 1], rois[..., 3], h, size, stride, samples).to(features.dtype)
    column_weights = _sampling_weights(rois[..., 0], rois[..., 2], w, size, stride, samples).to(features.dtype)
    by_row = features.permute(0, 2, 3, 1).reshape(N, h, w * C)
    rows = torch.matmul(row_weights.reshape(N, P * size, h), by_row).reshape(N, P, size, w, C)
    pooled = torch.matmul(column_weights[:, :, None], rows)  # [N, P, S (y), S (x), C]
    return pooled.permute(0, 1, 4, 2, 3)


def _sampling_weights(start: Tensor, end: Tensor, length: int, size: int, stride: int, samples: int) -> Tensor:
    """Weight of each of `length` cells in each of `size` bins between `start` and `end`: [N, P, size, length]."""
    first = start / stride - 0.5
    bin_width = (end - start) / stride / size
    offsets = (torch.arange(size * samples, device=start.device).to(start.dtype) + 0.5) / samples
    positions = (first[..., None] + offsets * bin_width[..., None]).clamp(min=0)
    cells = torch.arange(length, device=start.device).to(start.dtype)
    weights = F.relu(1 - (positions[..., None] - cells).abs())  # bilinear interpolation along one axis
    return weights.unflatten(2, (size, samples)).mean(dim=3)


def roi_max_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """RoI max pooling: the maximum in each of S×S bins, whose corners are rounded to whole cells.

    features: [N, C, h, w], non-negative;  rois: [N, P, 4];  size: S.  Returns [N, P, C, S, S].
    """
    N, C = features.shape[:2]
    P = rois.shape[1]
    image = torch.arange(N, device=rois.device).to(rois.dtype)[:, None, None].expand(-1, P, 1)
    numbered = torch.cat([image, rois], dim=2).reshape(N * P, 5)
    pooled = torchvision.ops.roi_pool(features.to(rois.dtype), numbered, size, spatial_scale=1 / stride)
    return pooled.reshape(N, P, C, size, size)


def portable_roi_max_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """`roi_max_pool` in the form that runs on every provider of ONNX Runtime."""
    return range_max_pool(features, rois, size, stride).unflatten(0, rois.shape[:2])


def range_max_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """RoI max pooling by range-maximum queries, equal to `torchvision.ops.roi_pool` bit for bit.

    ONNX Runtime has no CUDA kernel for ONNX's MaxRoiPool, so the feature map would be copied to the host and back. Here
    max pooling first computes the maxima over all windows of 2^i × 2^j cells. Four overlapping windows cover a bin, so
    its maximum is the largest of theirs. A bin may be up to LONGEST_BIN cells long; `FasterRCNN.check_map_size` checks
    this.

    Shapes as in `roi_max_pool`; returns [N * P, C, S, S].
    """
    levels = WINDOW_LEVELS
    N, C, h, w = features.shape
    table = torch.stack([_window_max(features, 2**i, 2**j) for i in range(levels) for j in range(levels)])
    rows = table.permute(0, 1, 3, 4, 2).reshape(-1, C)  # [levels² * N * h * w, C]
    top, bottom = _bins(rois[..., 1], rois[..., 3], h, size, stride)  # [N, P, S]
    left, right = _bins(rois[..., 0], rois[..., 2], w, size, stride)
    tall, wide = _log2(bottom - top, levels), _log2(right - left, levels)
    last_top = torch.maximum(bottom - torch.exp2(tall), top).clamp(max=h - 1)
    last_left = torch.maximum(right - torch.exp2(wide), left).clamp(max=w - 1)
    image = torch.arange(N, device=rois.device)[:, None, None, None]
    level = tall.to(torch.int64)[..., :, None] * levels + wide.to(torch.int64)[..., None, :]

    def window(y: Tensor, x: Tensor) -> Tensor:
        place = ((level * N + image) * h + y.to(torch.int64)[..., :, None]) * w + x.to(torch.int64)[..., None, :]
        return rows[place.reshape(-1)]

    first_top, first_left = top.clamp(max=h - 1), left.clamp(max=w - 1)
    best = torch.maximum(
        torch.maximum(window(first_top, first_left), window(first_top, last_left)),
        torch.maximum(window(last_top, first_left), window(last_top, last_left)),
    )
    filled = (bottom > top)[..., :, None] & (right > left)[..., None, :]
    best = torch.where(filled.reshape(-1, 1), best, torch.zeros_like(best[:1]))
    return best.reshape(-1, size, size, C).permute(0, 3, 1, 2)


def _window_max(features: Tensor, height: int, width: int) -> Tensor:
    """For each cell, the maximum over the `height` × `width` cells that begin there, ignoring those off the map."""
    if height == width == 1:
        return features
    padded = F.pad(features, (0, width - 1, 0, height - 1), value=-3e4)  # -3e4 also fits float16
    return F.max_pool2d(padded, (height, width), stride=1)


def _bins(start: Tensor, end: Tensor, length: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """The first cell of each bin, and the cell after its last one: [N, P, S] each, whole numbers as floats."""
    first, last = _round(start * (1 / stride))[..., None], _round(end * (1 / stride))[..., None]
    bin_width = (last - first + 1).clamp(min=1) / size
    steps = torch.arange(size, device=start.device).to(start.dtype)
    return (
        (torch.floor(steps * bin_width) + first).clamp(0, length),
        (torch.ceil((steps + 1) * bin_width) + first).clamp(0, length),
    )


def _round(values: Tensor) -> Tensor:
    """Rounds halves away from zero, as C's round does. floor(x + 0.5) would be wrong: it rounds 0.49999997 up."""
    magnitudes = values.abs()
    whole = torch.floor(magnitudes)
    return torch.sign(values) * (whole + (magnitudes - whole >= 0.5).to(values.dtype))


def _log2(lengths: Tensor, levels: int) -> Tensor:
    """floor(log2) of whole lengths, by comparisons, because a computed log2 of a power of two may be inexact."""
    powers = torch.tensor([2.0**level for level in range(1, levels)], device=lengths.device)
    return (lengths[..., None] >= powers).to(lengths.dtype).sum(dim=-1)


POOLINGS = ("align", "max")  # the values of `DetectorConfig.roi_pooling`
_POOLING_FUNCTIONS = {"align": roi_align, "max": roi_max_pool, "portable max": portable_roi_max_pool}

# Lin et al. 2017, eq. 1: a region of 224² pixels, ImageNet's size, belongs to the map of stride 16. As in torchvision,
# the limits between maps are lowered by a factor of 2^-SLACK, so that rounding does not move a region to a finer map.
CANONICAL_SIDE = 224.0
CANONICAL_STRIDE = 16
SLACK = 1e-6


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], rois: Tensor, size: int, pooling: str) -> Tensor:
    """Pools each region from the map that it belongs to.

    maps: one map, or several whose strides double, finest first, [N, C, h, w] each;
    strides: the maps' strides, which may be followed by those of other maps;
    rois: [N, P, 4];  size: S;  pooling: one of POOLINGS, or "portable max".  Returns [N, P, C, S, S].
    """
    if len(maps) == 1:
        return _POOLING_FUNCTIONS[pooling](maps[0], rois, size, strides[0])
    # In float16 the coordinates on the atlas would be too coarse.
    stacked, tops = atlas([features.to(rois.dtype) for features in maps])
    level = level_of(rois, strides[: len(maps)])
    scale = rois.new_tensor([1 / stride for stride in strides])[level]
    top = torch.stack([(level == number).to(rois.dtype) * first for number, first in enumerate(tops)]).sum(dim=0)
    left = torch.ones_like(top)
    in_cells = rois * scale[..., None] + torch.stack([left, top, left, top], dim=2)
    if pooling != "align":
        return _POOLING_FUNCTIONS[pooling](stacked, in_cells, size, 1)
    N, P = rois.shape[:2]
    image = torch.arange(N, device=rois.device).to(rois.dtype)[:, None, None].expand(-1, P, 1)
    numbered = torch.cat([image, in_cells], dim=2).reshape(N * P, 5)
    pooled = torchvision.ops.roi_align(stacked, numbered, size, 1.0, sampling_ratio=2, aligned=True)
    return pooled.reshape(N, P, stacked.shape[1], size, size)


def level_of(rois: Tensor, strides: Sequence[int]) -> Tensor:
    """The map that each region belongs to: eq. 1, k = ⌊4 + log2(√(wh) / 224)⌋, clamped to the maps that exist.

    rois: [N, P, 4];  strides: each twice the one before.  Returns int64 [N, P], indices into `strides`.
    This compares areas, which every runtime computes identically, whereas the last bit of a logarithm may differ.
    """
    areas = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
    sides = [CANONICAL_SIDE * stride / CANONICAL_STRIDE for stride in strides[1:]]
    borders = areas.new_tensor([(side * 2**-SLACK) ** 2 for side in sides])
    return (areas[..., None] >= borders).to(torch.int64).sum(dim=-1)


def atlas(maps: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Stacks all maps vertically into one, so that one pooling call serves all regions, whichever maps they belong to.

    A map's first row and column are duplicated, because RoIAlign extends them by half a cell beyond the border. Two
    rows and columns of zeros follow its end, as on a larger canvas.
    maps: [N, C, h, w] each, the widest first.  Returns [N, C, Σ(h + 3), w + 3] and the row where each map begins; all
    begin in column 1.
    """
    width = maps[0].shape[3] + 3
    framed, tops, row = [], [], 0
    for features in maps:
        h, w = features.shape[2:]
        framed.append(F.pad(F.pad(features, (1, 0, 1, 0), mode="replicate"), (0, width - w - 1, 0, 2)))
        tops.append(row + 1)
        row = row + h + 3
    return torch.cat(framed, dim=2), tops
