"""Boxes and their deltas (Girshick et al. 2014, appendix C; Ren et al. 2015, eq. 2).

R  boxes.  Boxes are x1, y1, x2, y2 in canvas pixels, without the "+1" of the Caffe code.
Deltas are dx, dy, dw, dh: the shift of the centre divided by the reference box's sides, and the logarithm of the ratio
of the sides. Unless stated otherwise, a function accepts any number of leading dimensions.
"""

import math

import torch
from torch import Tensor

# The upper bound of dw and dh, so that exp() of an untrained delta stays finite. The value is torchvision's: a side may
# grow by a factor of at most 1000 / 16, the longest image side divided by the stride.
MAX_LOG_GROWTH = math.log(1000.0 / 16)


def encode(boxes: Tensor, references: Tensor) -> Tensor:
    """Computes the deltas that turn `references` into `boxes` (eq. 2).

    boxes, references: [..., 4].  Returns [..., 4] as dx, dy, dw, dh.
    Raises ValueError if a box has no area; the message names the first such row.
    """
    for name, candidates in (("box", boxes), ("reference box", references)):
        flat = candidates.reshape(-1, 4)
        empty = ((flat[:, 2:] - flat[:, :2]) <= 0).any(dim=1)
        if bool(empty.any()):
            row = int(empty.nonzero()[0])
            raise ValueError(f"{name} {row} has no area: {flat[row].tolist()}; remove it from the annotations")
    sides = boxes[..., 2:] - boxes[..., :2]
    reference_sides = references[..., 2:] - references[..., :2]
    centres = boxes[..., :2] + 0.5 * sides
    reference_centres = references[..., :2] + 0.5 * reference_sides
    return torch.cat([(centres - reference_centres) / reference_sides, torch.log(sides / reference_sides)], dim=-1)


def decode(deltas: Tensor, references: Tensor) -> Tensor:
    """Applies `deltas` to `references`: the inverse of `encode`.

    deltas, references: [..., 4].  Returns [..., 4].
    """
    reference_sides = references[..., 2:] - references[..., :2]
    reference_centres = references[..., :2] + 0.5 * reference_sides
    growth = torch.clamp(deltas[..., 2:], max=MAX_LOG_GROWTH)
    centres = reference_centres + deltas[..., :2] * reference_sides
    half_sides = 0.5 * torch.exp(growth) * reference_sides
    return torch.cat([centres - half_sides, centres + half_sides], dim=-1)


def clip_to_sizes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clips boxes to their own image: torchvision's `clip_boxes_to_image` for images of different sizes.

    boxes: [N, R, 4];  sizes: [N, 2] as height, width.  Returns [N, R, 4].
    """
    limit = sizes.to(boxes.dtype).flip(1)  # width, height
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=1)[:, None])


def sides_at_least(boxes: Tensor, minimum: float) -> Tensor:
    """Marks the boxes whose sides are both at least `minimum` pixels: torchvision's `remove_small_boxes` as a mask.

    boxes: [..., 4].  Returns bool [...].
    """
    return ((boxes[..., 2:] - boxes[..., :2]) >= minimum).all(dim=-1)
