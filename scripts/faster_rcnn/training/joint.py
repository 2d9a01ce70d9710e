"""Approximate joint training (Ren et al. 2015, section 3.2): all four losses in one step, proposals held fixed."""

from torch import Tensor

from faster_rcnn.data.loader import Batch
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.training.loop import ComputeLosses


def joint_losses(mixed_precision: bool) -> ComputeLosses:
    """The losses of a joint step."""

    def compute(detector: FasterRCNN, batch: Batch) -> dict[str, Tensor]:
        return detector.losses(batch.images, batch.sizes, batch.truth, mixed_precision)

    return compute
