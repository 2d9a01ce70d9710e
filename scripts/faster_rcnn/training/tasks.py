"""What can be trained of a detector: all of it, its RPN, or its head with the backbone; and how each is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation import Predictor, measure, proposal_recall, torch_predictor
from faster_rcnn.proposal_sources.rpn import image_regions
from faster_rcnn.training.fast_rcnn import given_predictor
from faster_rcnn.training.objectives import Compute, fast_rcnn_losses, joint_losses, rpn_losses

Measure = Callable[[Sequence[Sample], Sequence[Prediction], tuple[str, ...]], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """losses: what is minimised;  trained: the detector's parts that are;  predictor, measure: its validation;
    chosen_by: the metric that is highest of the best detector."""

    name: str
    losses: Compute
    trained: tuple[str, ...]
    predictor: Callable[[FasterRCNN], Predictor]
    measure: Measure
    chosen_by: str


def _rpn_predictor(detector: FasterRCNN) -> Predictor:
    def predict(sample: Sample) -> Prediction:
        regions = image_regions(detector, sample, detector.config.proposals)
        nothing = np.zeros(0, np.int64)
        return Prediction(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), nothing, regions.boxes)

    return predict


def _recall(truths: Sequence[Sample], predictions: Sequence[Prediction], labels: tuple[str, ...]) -> dict[str, Any]:
    regions = [one.proposals for one in predictions if one.proposals is not None]
    most = max(len(one) for one in regions)
    measures = proposal_recall(truths, regions, (most,))["by_number"][str(most)]
    return {name: round(value, 4) for name, value in measures.items()} | {"proposals": most}


TASKS = {
    task.name: task
    for task in (
        Task("joint", joint_losses, ("backbone", "rpn", "head"), torch_predictor, measure, "AP50"),
        Task("rpn", rpn_losses, ("backbone", "rpn"), _rpn_predictor, _recall, "AR"),
        Task("fast-rcnn", fast_rcnn_losses, ("backbone", "head"), given_predictor, measure, "AP50"),
    )
}


def freeze_all_but(detector: FasterRCNN, parts: Sequence[str]) -> list[torch.nn.Module]:
    """Keeps what is not among `parts` (backbone, rpn, head) as it is; returns the parts kept."""
    kept = [module for name, module in detector.named_children() if name not in parts]
    for module in kept:
        module.requires_grad_(False)
    return kept
