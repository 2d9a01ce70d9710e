"""From a data set and a detector to metrics: predictions are collected once, and everything is measured on them.

D  detections, P  proposals of one picture.  Boxes are x1, y1, x2, y2 in the pixels of the original picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from faster_rcnn.boxes import clip_to_sizes
from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.loader import collate
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.evaluation.coco import coco_ap
from faster_rcnn.evaluation.recall import NUMBERS, proposal_recall
from faster_rcnn.evaluation.voc import voc_ap
from faster_rcnn.resize import resize_image

Predictor = Callable[[Sample], Prediction]


def torch_predictor(detector: FasterRCNN) -> Predictor:
    """The PyTorch detector on one picture by itself, on the tightest canvas; its proposals come with its detections."""
    device = detector.mean.device

    @torch.no_grad()
    def predict(sample: Sample) -> Prediction:
        training = detector.training
        detector.eval()
        image, scale_x, scale_y = resize_image(sample.image, detector.config.resize)
        batch = collate([Sample(image, sample.boxes, sample.labels)], detector.backbone.stride).to(device)
        answer = detector(batch.images, batch.sizes)
        detector.train(training)
        scale = answer.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        size = torch.tensor([sample.image.shape[:2]], device=device)
        real, proposed = int(answer.num_detections[0]), int(answer.num_proposals[0])
        boxes = clip_to_sizes(answer.boxes[:, :real] / scale, size)[0]
        proposals = clip_to_sizes(answer.proposals[:, :proposed] / scale, size)[0]
        scores, labels = answer.scores[0, :real], answer.labels[0, :real]
        return Prediction(boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy(), proposals.cpu().numpy())

    return predict


def evaluate(dataset: Dataset, predict: Predictor, limit: int | None = None) -> dict[str, Any]:
    """The metrics of a predictor on the first `limit` pictures of a data set; see `measure`."""
    truths, predictions = collect(dataset, predict, limit)
    return measure(truths, predictions, dataset.labels)


def collect(dataset: Dataset, predict: Predictor, limit: int | None = None) -> tuple[list[Sample], list[Prediction]]:
    """What is true and what is predicted of the first `limit` pictures.

    The samples have their objects and size but no pixels: thousands of pictures would fill the memory.
    """
    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))
    truths, predictions = [], []
    for index in tqdm(indices, desc="evaluating", unit="picture", leave=False):
        sample = dataset[index]
        predictions.append(predict(sample))
        truths.append(without_pixels(sample))
    return truths, predictions


def without_pixels(sample: Sample) -> Sample:
    """The sample with a picture of its size that takes a single byte, for who only needs the objects."""
    return replace(sample, image=np.broadcast_to(np.uint8(0), sample.image.shape))


def measure(truths: Sequence[Sample], predictions: Sequence[Prediction], labels: tuple[str, ...]) -> dict[str, Any]:
    """COCO's metrics (`coco_ap`), VOC's by both rules and, where every prediction has proposals, their recall.

    VOC_mAP, VOC_AP_by_class: area under the curve (VOC 2010 and later);  VOC_mAP_11, VOC_AP_11_by_class: eleven points
    (VOC 2007);  proposals: recall by the number of proposals, for those of NUMBERS that the detector gives.
    Raises ValueError if there is no object at all.
    """
    metrics = coco_ap(truths, predictions, labels)
    voc = voc_ap(truths, predictions, labels)
    del voc["VOC_curves"]
    metrics |= rounded(voc)
    regions = [prediction.proposals for prediction in predictions if prediction.proposals is not None]
    if len(regions) < len(predictions):
        return metrics
    most = max(len(one) for one in regions)
    given = tuple(number for number in NUMBERS if number <= most) or (most,)
    return metrics | {"proposals": rounded(proposal_recall(truths, regions, given)["by_number"])}


def rounded(value: Any) -> Any:
    """Every float in nested dicts and lists to four places, as in COCO's metrics."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
