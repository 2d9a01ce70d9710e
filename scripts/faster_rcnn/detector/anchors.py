"""Anchors: the k reference boxes at every location of a feature map (Ren et al. 2015, section 3.1.1).

H, W  feature map size;  k  anchors per location;  boxes are x1, y1, x2, y2 in canvas pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from faster_rcnn.detector.anchor_shapes import anchor_sizes


def cell_anchors(scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The anchors of one location, centred on the origin.  Returns [k, 4], in the order of `anchor_sizes`."""
    sizes = torch.tensor(anchor_sizes(scales, ratios))
    return torch.cat([-sizes, sizes], dim=1) / 2


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The anchors of all locations of a feature map.

    cell: [k, 4] from `cell_anchors`.  A location covers a square of `stride` × `stride` pixels, and its anchors are
    centred on the middle of that square, as in the reference code.
    Returns [H * W * k, 4], ordered by row, then by column, then by anchor.
    """
    centre_y = (torch.arange(height, device=cell.device) * stride).to(torch.float32) + stride / 2
    centre_x = (torch.arange(width, device=cell.device) * stride).to(torch.float32) + stride / 2
    y = centre_y[:, None].expand(height, width)
    x = centre_x[None, :].expand(height, width)
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None, :] + cell).reshape(-1, 4)


def inside_image(anchors: Tensor, size: Tensor) -> Tensor:
    """Marks the anchors that lie entirely inside an image; the paper trains only these (section 3.3).

    anchors: [A, 4];  size: [2] as height, width.  Returns bool [A].
    """
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 3] <= size[0]) & (anchors[:, 2] <= size[1])
