"""Region features of a fixed size: RoI max pooling (Girshick 2015, section 2.1) and RoIAlign (He et al. 2017).

N  images;  P  regions an image;  C, h, w  feature map;  S  output size.  Regions are x1, y1, x2, y2 in canvas pixels.
Both take features that are zero outside the image, and give the same on every canvas.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

# Windows of RoI max pooling are tabled up to 2³ cells a side, and two of them cover a bin.
WINDOW_LEVELS = 4
LONGEST_BIN = 2**WINDOW_LEVELS


def roi_align(features: Tensor, rois: Tensor, size: int, stride: int, samples: int = 2) -> Tensor:
    """RoIAlign: the mean of `samples`² bilinear samples in each of S×S bins (half-pixel aligned).

    Sampling on a regular grid is separable: a bin's value is its row weights times the features times its column
    weights. Written so, it is two batched matrix products, which run at the speed of a convolution on every device,
    where the RoiAlign operator of ONNX Runtime takes twice as long on a CPU.
    Equals `torchvision.ops.roi_align(aligned=True)` on features with one more row and column of zeros at their end:
    what a larger canvas has there anyhow.

    features: [N, C, h, w];  rois: [N, P, 4];  size: S.  Returns [N, P, C, S, S].
    """
    N, C, h, w = features.shape
    P = rois.shape[1]
    row_weights = _sampling_weights(rois[..., 1], rois[..., 3], h, size, stride, samples)  # [N, P, S, h]
    column_weights = _sampling_weights(rois[..., 0], rois[..., 2], w, size, stride, samples)  # [N, P, S, w]
    by_row = features.permute(0, 2, 3, 1).reshape(N, h, w * C)
    rows = torch.matmul(row_weights.reshape(N, P * size, h), by_row).reshape(N, P, size, w, C)
    pooled = torch.matmul(column_weights[:, :, None], rows)  # [N, P, S (y), S (x), C]
    return pooled.permute(0, 1, 4, 2, 3)


def _sampling_weights(start: Tensor, end: Tensor, length: int, size: int, stride: int, samples: int) -> Tensor:
    """How much each of `length` cells counts in each of `size` bins between `start` and `end`: [N, P, size, length]."""
    first = start / stride - 0.5
    bin_width = (end - start) / stride / size
    offsets = (torch.arange(size * samples, device=start.device).to(start.dtype) + 0.5) / samples
    positions = (first[..., None] + offsets * bin_width[..., None]).clamp(min=0)
    cells = torch.arange(length, device=start.device).to(start.dtype)
    weights = F.relu(1 - (positions[..., None] - cells).abs())  # bilinear interpolation along one axis
    return weights.unflatten(2, (size, samples)).mean(dim=3)


def roi_max_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """RoI max pooling: the maximum of each of S×S bins, whose corners are rounded to whole cells.

    features: [N, C, h, w], not negative;  rois: [N, P, 4];  size: S.  Returns [N, P, C, S, S].
    """
    N, C = features.shape[:2]
    P = rois.shape[1]
    if torch.compiler.is_exporting():
        pooled = range_max_pool(features, rois, size, stride)
    else:
        pooled = torchvision.ops.roi_pool(features, list(rois.unbind(0)), size, spatial_scale=1 / stride)
    return pooled.reshape(N, P, C, size, size)


def range_max_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """RoI max pooling by range-maximum queries, equal to `torchvision.ops.roi_pool` bit for bit.

    ONNX's MaxRoiPool has no CUDA kernel in ONNX Runtime: the feature map would travel to the host and back. Here the
    maxima over all windows of 2^i × 2^j cells are tabled by max pooling, and a bin is the maximum of four overlapping
    windows of the table. A bin may be up to LONGEST_BIN cells long; `detector.check_map_size` sees to it.

    Shapes as in `roi_max_pool`; returns [N * P, C, S, S].
    """
    levels = WINDOW_LEVELS
    N, C, h, w = features.shape
    table = torch.stack(
        [_window_max(features, 2**i, 2**j) for i in range(levels) for j in range(levels)]
    )  # [levels², N, C, h, w]
    rows = table.permute(0, 1, 3, 4, 2).reshape(-1, C)
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
    """At each cell the maximum of the `height` × `width` cells from there on; outside counts as less than anything."""
    if height == width == 1:
        return features
    padded = F.pad(features, (0, width - 1, 0, height - 1), value=-3e4)  # -3e4 also fits float16
    return F.max_pool2d(padded, (height, width), stride=1)


def _bins(start: Tensor, end: Tensor, length: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """First cell and cell after the last of each bin, as whole floats [N, P, S]; rounds halves away from zero."""
    first = torch.floor(start * (1 / stride) + 0.5)[..., None]
    last = torch.floor(end * (1 / stride) + 0.5)[..., None]
    bin_width = (last - first + 1).clamp(min=1) / size
    steps = torch.arange(size, device=start.device).to(start.dtype)
    return (
        (torch.floor(steps * bin_width) + first).clamp(0, length),
        (torch.ceil((steps + 1) * bin_width) + first).clamp(0, length),
    )


def _log2(lengths: Tensor, levels: int) -> Tensor:
    """floor(log2) of whole lengths by comparison, because log2 of a power of two need not be exact."""
    powers = torch.tensor([2.0**level for level in range(1, levels)], device=lengths.device)
    return (lengths[..., None] >= powers).to(lengths.dtype).sum(dim=-1)


POOLINGS = {"align": roi_align, "max": roi_max_pool}
