"""Parts of torch and torchvision that this package uses although their documentation does not promise to keep them.

Imported here, and nowhere else in the package:
- `torch.fx.experimental.symbolic_shapes.statically_known_true`: compares sizes that are symbols during an export.
- `torch.utils.weak.WeakIdKeyDictionary`: a weak dictionary whose keys are compared by identity, not by value.
- `torchvision.models.detection.rpn.concat_box_prediction_layers`: the RPN's outputs in the order of the anchors.
- `torchvision.ops.poolers.LevelMapper`: assigns regions to the maps of a pyramid.

Attributes of torchvision's modules that are public by name only:
- `MultiScaleRoIAlign.scales` and `.map_levels`, in `fixed_scales` below;
- `GeneralizedRCNNTransform.fixed_size`, `.size_divisible`, `.batch_images` and `.normalize`, in `detector.py`;
- `RegionProposalNetwork.head`, `.anchor_generator`, `.box_coder`, `.filter_proposals` and its limits, in `detector.py`;
- `RoIHeads.box_roi_pool`, `.box_head`, `.box_predictor`, `.box_coder` and its limits, in `detector.py`.

If a release changes one of them, an import or an attribute fails, or `graph/verification.py` finds another answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

__all__ = ["WeakIdKeyDictionary", "concat_box_prediction_layers", "fixed_scales", "statically_known_true"]


@contextmanager
def fixed_scales(pool: MultiScaleRoIAlign, strides: Sequence[int]) -> Iterator[None]:
    """A context in which `pool` assumes that its maps have these strides, in pixels, finest first.

    torchvision derives the strides from the first image that it sees and keeps them. A small first image, whose maps
    are rounded up, would make them wrong for all later images.
    """
    own = pool.scales, pool.map_levels
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    pool.map_levels = LevelMapper(finest, coarsest, pool.canonical_scale, pool.canonical_level)
    try:
        yield
    finally:
        pool.scales, pool.map_levels = own
