"""The rules of a detector's parts, as plain values: they are read without torch, which takes long to import.

A configuration (`config.py`) holds one of each.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

FourDeltas = tuple[float, float, float, float]  # dx, dy, dw, dh


@dataclass(frozen=True)
class AnchorSampling:
    """How anchors are labelled and sampled (Ren et al. 2015, sections 3.1.2 and 3.1.3)."""

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    batch: int = 256  # anchors per image
    positive_share: float = 0.5  # "a ratio of up to 1:1"
    # Section 3.3 ignores anchors that cross the image's border; about 6000 of 20000 remain on a 1000 × 600 image. In
    # a small image nearly every large anchor crosses the border, so large objects would have no positive anchor.
    keep_crossing: bool = False


@dataclass(frozen=True)
class ProposalSampling:
    """How proposals are sampled (Girshick 2015, section 2.3).

    The lower bound of the background is that of the Faster R-CNN reference code.
    """

    foreground_iou: float = 0.5
    background_iou: tuple[float, float] = (0.0, 0.5)  # Fast R-CNN's lower bound is 0.1, to mine hard examples
    batch: int = 128  # regions per image; Fast R-CNN samples 64 from each of two images
    foreground_share: float = 0.25


@dataclass(frozen=True)
class LossRule:
    """The constants of the losses. The defaults are the papers' values.

    `rpn_normaliser` chooses the number by which the RPN's box term is divided, N_reg in eq. 1 of Ren et al. The paper's
    N_reg of 2400 is the number of anchor *locations*; the number of *anchors* is nine times as large. The reference
    code divides by the 256 *sampled* anchors and has no λ, so its weight of 1 / 256 is close to the paper's 10 / 2400.
    """

    rpn_lambda: float = 10.0  # section 3.1.2: "λ = 10, and thus both terms are roughly equally weighted"
    rpn_normaliser: Literal["locations", "anchors", "sampled"] = "locations"
    # Smooth L1 is quadratic up to beta and linear above it. Beta is 1 in both papers, and 1 / 9 in the reference code's
    # RPN and in both stages of torchvision.
    rpn_beta: float = 1.0
    head_beta: float = 1.0
    head_lambda: float = 1.0  # Girshick 2015, section 2.3: "all experiments use λ = 1"


@dataclass(frozen=True)
class ProposalLimits:
    """Limits on the number and size of proposals."""

    before_nms: int
    after_nms: int
    nms_threshold: float = 0.7  # section 3.3
    # In canvas pixels. The reference code requires 16 pixels of the original image, which only suits VOC's large
    # objects. A box of less than a pixel is meaningless in any data set.
    min_side: float = 1.0


@dataclass(frozen=True)
class DetectionLimits:
    """Limits on the number and score of detections."""

    detections: int = 100  # the limit of COCO's evaluation
    candidates: int = 400  # the best pairs of class and proposal, which enter NMS
    score_floor: float = 0.05  # lowest score that the graph returns; torchvision's and the reference code's value
    nms_threshold: float = 0.5  # torchvision's; the papers' VOC results used 0.3


@dataclass(frozen=True)
class TargetNormalisation:
    """How the head's regression targets are normalised to "zero mean and unit variance" (Fast R-CNN, section 2.3).

    The defaults are the Faster R-CNN reference code's fixed estimates. Fast R-CNN measures both on the training set
    (`measure_normalisation`), which requires fixed proposals: those of an RPN change while it is trained.
    """

    means: FourDeltas = (0.0, 0.0, 0.0, 0.0)
    stds: FourDeltas = (0.1, 0.1, 0.2, 0.2)

    def apply(self, deltas: "Tensor") -> "Tensor":
        """Normalises deltas [..., 4], which gives the targets of the head."""
        return (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)

    def undo(self, predicted: "Tensor") -> "Tensor":
        """Turns the head's predictions [..., 4] back into deltas."""
        return predicted * predicted.new_tensor(self.stds) + predicted.new_tensor(self.means)
