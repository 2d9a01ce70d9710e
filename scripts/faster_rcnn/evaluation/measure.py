"""From a data set and a detector to metrics: predictions are collected once, and everything is measured on them.

D  detections, P  proposals of one image.  Boxes are x1, y1, x2, y2 in the pixels of the original image.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.subset import Subset
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation.coco import coco_ap
from faster_rcnn.evaluation.recall import NUMBERS, proposal_recall
from faster_rcnn.evaluation.voc import voc_ap
from faster_rcnn.prediction import inferring, single

Predictor = Callable[[Sample], Prediction]


def torch_predictor(detector: FasterRCNN) -> Predictor:
    """The PyTorch detector on one image by itself, on the tightest canvas; its proposals come with its detections."""

    def predict(sample: Sample) -> Prediction:
        one = single(detector, sample)
        with inferring(detector):
            answer = detector(one.batch.images, one.batch.sizes)
        real, proposed = int(answer.num_detections[0]), int(answer.num_proposals[0])
        scores, labels = answer.scores[0, :real].cpu().numpy(), answer.labels[0, :real].cpu().numpy()
        proposals = one.to_original(answer.proposals[:, :proposed])
        return Prediction(one.to_original(answer.boxes[:, :real]), scores, labels, proposals)

    return predict


def evaluate(dataset: Dataset, predict: Predictor, limit: int | None = None) -> dict[str, Any]:
    """The metrics of a predictor on the first `limit` images of a data set; see `measure`."""
    truths, predictions = collect(dataset, predict, limit)
    return measure(truths, predictions, dataset.labels)


def collect(dataset: Dataset, predict: Predictor, limit: int | None = None) -> tuple[list[Sample], list[Prediction]]:
    """What is true and what is predicted of the first `limit` images.

    The samples have their objects and size but no pixels: thousands of images would fill the memory.
    """
    pictures = dataset if limit is None else Subset(dataset, limit)
    truths, predictions = [], []
    for index in tqdm(range(len(pictures)), desc="evaluating", unit="image", leave=False):
        sample = pictures[index]
        predictions.append(predict(sample))
        truths.append(without_pixels(sample))
    return truths, predictions


def without_pixels(sample: Sample) -> Sample:
    """The sample with an image of its size that takes a single byte, for who only needs the objects."""
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
