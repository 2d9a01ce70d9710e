"""Training objectives: the losses to minimise, the parts of the detector that learn, and how to validate them.

N  images;  A  anchors;  P  proposals per image;  boxes are in canvas pixels.
Each loss is the mean over the images of a batch. Sampling for an image depends on that image's seed alone, so it is the
same in every process, micro-batch and resumed run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.data.loader import Batch, GroundTruth
from faster_rcnn.detector import losses
from faster_rcnn.detector.anchors import inside_image
from faster_rcnn.detector.boxes import encode
from faster_rcnn.detector.detector import FasterRCNN, RPNOutput
from faster_rcnn.detector.mixed_precision import autocast_dtype
from faster_rcnn.detector.sampling import POSITIVE, label_anchors, sample_anchors, sample_proposals
from faster_rcnn.evaluation.measure import measure
from faster_rcnn.evaluation.predictors import Predictor, fast_rcnn_predictor, rpn_predictor, torch_predictor
from faster_rcnn.evaluation.recall import proposal_recall

Losses = dict[str, Tensor]
ComputeLosses = Callable[[FasterRCNN, Batch, bool], Losses]  # the flag allows mixed precision
Measure = Callable[[Sequence[Sample], Sequence[Prediction], tuple[str, ...]], dict[str, Any]]


def joint_losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> Losses:
    """The four losses of approximate joint training (Ren et al. 2015, section 3.2), with proposals as constants."""
    features, rpn = _features_and_regions(detector, batch, mixed_precision)
    with torch.no_grad():
        selected = detector.select(rpn, batch.sizes, detector.config.training_proposals)
    proposals = [boxes[:number] for boxes, number in zip(selected.boxes, selected.number.tolist(), strict=True)]
    return _rpn_losses(detector, rpn, batch) | _head_losses(detector, features, proposals, batch)


def rpn_losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> Losses:
    """The losses of the region proposal network alone (steps 1 and 3 of alternating training)."""
    _, rpn = _features_and_regions(detector, batch, mixed_precision)
    return _rpn_losses(detector, rpn, batch)


def fast_rcnn_losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> Losses:
    """The losses of Fast R-CNN on the proposals in the batch (steps 2 and 4, or any source of proposals).

    Raises ValueError if the batch has none.
    """
    if batch.proposals is None:
        raise ValueError("the images carry no proposals; open the data set with those of a source")
    with _precision(detector, batch.images, mixed_precision):
        features = detector.features(batch.images, batch.sizes)
    return _head_losses(detector, [one.float() for one in features], batch.proposals, batch)


@dataclass(frozen=True)
class Objective:
    """What a training run minimises, and how validation judges it.

    name: stored in checkpoints as `objective`;  trained: the parts of the detector that learn (backbone, rpn, head);
    chosen_by: the metric that is highest for the best checkpoint.
    """

    name: str
    losses: ComputeLosses
    trained: tuple[str, ...]
    predictor: Callable[[FasterRCNN], Predictor]
    measure: Measure
    chosen_by: str

    def freeze_other_parts(self, detector: FasterRCNN) -> list[nn.Module]:
        """Stops gradients to the parts that are not trained, and returns these parts."""
        frozen = [module for name, module in detector.named_children() if name not in self.trained]
        for module in frozen:
            module.requires_grad_(False)
        return frozen


def _rpn_recall(
    truths: Sequence[Sample], predictions: Sequence[Prediction], _labels: tuple[str, ...]
) -> dict[str, Any]:
    regions = [one.proposals for one in predictions if one.proposals is not None]
    most = max(len(one) for one in regions)
    measures = proposal_recall(truths, regions, (most,))["by_number"][str(most)]
    return {name: round(value, 4) for name, value in measures.items()} | {"proposals": most}


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("joint", joint_losses, ("backbone", "rpn", "head"), torch_predictor, measure, "AP50"),
        Objective("rpn", rpn_losses, ("backbone", "rpn"), rpn_predictor, _rpn_recall, "AR"),
        Objective("fast-rcnn", fast_rcnn_losses, ("backbone", "head"), fast_rcnn_predictor, measure, "AP50"),
    )
}


class LossModule(nn.Module):
    """Computes an objective's losses in its forward pass, because DistributedDataParallel wraps forward passes."""

    def __init__(self, detector: FasterRCNN, compute: ComputeLosses, mixed_precision: bool) -> None:
        super().__init__()
        self.detector = detector
        self.compute = compute
        self.mixed_precision = mixed_precision

    def forward(self, batch: Batch) -> Losses:
        return self.compute(self.detector, batch, self.mixed_precision)


def _precision(detector: FasterRCNN, images: Tensor, mixed: bool) -> torch.autocast:
    """Autocast to the reduced precision in which the device is faster, if it has one and `mixed` allows it.

    It covers the backbone and the RPN, whose convolutions take most of the time; boxes and losses stay float32.
    Depthwise convolutions (MobileNet) stay float32 on a CPU: bfloat16 saved no time, and in three of three runs the
    gradient norm became infinite within 15 steps, while it stayed finite for 400 in float32. The cause is unknown.
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
