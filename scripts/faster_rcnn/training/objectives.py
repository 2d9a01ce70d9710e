"""What is minimised: the four losses of joint training, those of the RPN alone, those of Fast R-CNN alone.

N  images;  A  anchors;  P  proposals an image;  boxes are in canvas pixels.
Each loss is the mean over the images of a batch. What is drawn at random for an image follows from that image's seed,
so that it is the same in whichever process, part of a batch or resumed run the image comes up.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from faster_rcnn.data.loader import Batch, GroundTruth
from faster_rcnn.detector import losses
from faster_rcnn.detector.anchors import inside_image
from faster_rcnn.detector.boxes import encode
from faster_rcnn.detector.detector import FasterRCNN, RPNOutput
from faster_rcnn.detector.mixed_precision import autocast_dtype
from faster_rcnn.detector.sampling import POSITIVE, label_anchors, sample_anchors, sample_proposals

Losses = dict[str, Tensor]
Compute = Callable[[FasterRCNN, Batch, bool], Losses]


def joint_losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> Losses:
    """Approximate joint training (Ren et al. 2015, section 3.2): the proposals are held fixed."""
    features, rpn = _features_and_regions(detector, batch, mixed_precision)
    with torch.no_grad():
        proposals = detector.select(rpn, batch.sizes, detector.config.training_proposals)
    given = [boxes[:number] for boxes, number in zip(proposals.boxes, proposals.number.tolist(), strict=True)]
    return _rpn_losses(detector, rpn, batch) | _head_losses(detector, features, given, batch)


def rpn_losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> Losses:
    """The region proposal network alone (steps 1 and 3 of alternating training)."""
    _, rpn = _features_and_regions(detector, batch, mixed_precision)
    return _rpn_losses(detector, rpn, batch)


def fast_rcnn_losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> Losses:
    """Fast R-CNN on the proposals that the batch brings along (steps 2 and 4, or any source).

    Raises ValueError if the batch brings none.
    """
    if batch.proposals is None:
        raise ValueError("the images carry no proposals; open the data set with those of a source")
    with _precision(detector, batch.images, mixed_precision):
        features = detector.features(batch.images, batch.sizes)
    return _head_losses(detector, [one.float() for one in features], batch.proposals, batch)


class Objective(nn.Module):
    """A detector with what is minimised of it: a module whose forward gives the losses, as data parallelism wants."""

    def __init__(self, detector: FasterRCNN, compute: Compute, mixed_precision: bool) -> None:
        super().__init__()
        self.detector = detector
        self.compute = compute
        self.mixed_precision = mixed_precision

    def forward(self, batch: Batch) -> Losses:
        return self.compute(self.detector, batch, self.mixed_precision)


def _precision(detector: FasterRCNN, images: Tensor, mixed: bool) -> torch.autocast:
    """The reduced precision that the device is faster in, if any and wanted: for backbone and RPN only, whose
    convolutions take the time; boxes and losses are computed in float32.

    Not for MobileNet's depthwise convolutions on a CPU: steps took as long in bfloat16, and three of three runs met an
    infinite gradient norm within 15 steps, which float32 did not in 400. The cause was not found.
    """
    depthwise = any(isinstance(one, nn.Conv2d) and one.groups > 1 for one in detector.backbone.modules())
    wanted = mixed and not (depthwise and images.device.type == "cpu")
    reduced = autocast_dtype(images.device) if wanted else None
    return torch.autocast(images.device.type, dtype=reduced, enabled=reduced is not None)


def _features_and_regions(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> tuple[list[Tensor], RPNOutput]:
    with _precision(detector, batch.images, mixed_precision):
        features = detector.features(batch.images, batch.sizes)
        rpn = detector.regions(features, batch.sizes)
    return [one.float() for one in features], rpn


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _rpn_losses(detector: FasterRCNN, rpn: RPNOutput, batch: Batch) -> Losses:
    each = [
        _rpn_losses_of_image(detector, rpn, batch.sizes, image, truth, seed)
        for image, (truth, seed) in enumerate(zip(batch.truth, batch.seeds, strict=True))
    ]
    return {
        "rpn_classification": torch.stack([classification for classification, _ in each]).mean(),
        "rpn_box": torch.stack([box for _, box in each]).mean(),
    }


def _rpn_losses_of_image(
    detector: FasterRCNN, rpn: RPNOutput, sizes: Tensor, image: int, truth: GroundTruth, seed: int
) -> tuple[Tensor, Tensor]:
    rule, loss_rule = detector.config.anchor_sampling, detector.config.losses
    usable = rpn.valid[image]
    if not rule.keep_crossing:
        usable = usable & inside_image(rpn.anchors, sizes[image])
    targets = label_anchors(rpn.anchors, usable, truth.boxes, rule)
    positive, negative = sample_anchors(targets.labels, rule, _generator(usable.device, seed))
    sampled = torch.cat([positive, negative])
    classification = losses.rpn_classification_loss(
        rpn.scores[image, sampled], (targets.labels[sampled] == POSITIVE).to(torch.int64)
    )
    anchors = int(rpn.valid[image].sum())
    normaliser = {"locations": anchors // detector.rpn.k, "anchors": anchors, "sampled": len(sampled)}
    wanted = encode(truth.boxes[targets.objects[positive]], rpn.anchors[positive])
    box = losses.rpn_box_loss(rpn.deltas[image, positive], wanted, normaliser[loss_rule.rpn_normaliser], loss_rule)
    return classification, box


def _head_losses(detector: FasterRCNN, features: list[Tensor], proposals: list[Tensor], batch: Batch) -> Losses:
    config = detector.config
    sampled = [
        sample_proposals(
            boxes, truth.boxes, truth.labels + 1, config.proposal_sampling, _generator(boxes.device, seed + 1)
        )
        for boxes, truth, seed in zip(proposals, batch.truth, batch.seeds, strict=True)
    ]
    class_scores, deltas = detector.classify(features, torch.stack([one.boxes for one in sampled]))
    classification, box = [], []
    for image, one in enumerate(sampled):
        real = one.labels >= 0
        labels = one.labels[real]
        targets = config.target_normalisation.apply(encode(one.targets[real], one.boxes[real]))
        classification.append(losses.head_classification_loss(class_scores[image, real], labels))
        box.append(losses.head_box_loss(deltas[image, real], targets, labels, config.losses))
    return {"head_classification": torch.stack(classification).mean(), "head_box": torch.stack(box).mean()}
