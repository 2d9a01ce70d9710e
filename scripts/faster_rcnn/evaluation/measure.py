"""Measures a predictor on a data set: predictions are collected once, and all metrics are computed from them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.subset import Subset
from faster_rcnn.evaluation.coco import coco_ap
from faster_rcnn.evaluation.predictors import Predictor
from faster_rcnn.evaluation.recall import NUMBERS, proposal_recall
from faster_rcnn.evaluation.voc import voc_ap


def evaluate(dataset: Dataset, predict: Predictor, limit: int | None = None) -> dict[str, Any]:
    """The metrics of a predictor on the first `limit` images of a data set; see `measure`."""
    truths, predictions = collect(dataset, predict, limit)
    return measure(truths, predictions, dataset.labels)


def collect(
    dataset: Dataset, predict: Predictor, limit: int | None = None, with_bar: bool = True
) -> tuple[list[Sample], list[Prediction]]:
    """The first `limit` samples, as `without_pixels` returns them, and the prediction for each."""
    first = dataset if limit is None else Subset(dataset, limit)
    truths, predictions = [], []
    for index in tqdm(range(len(first)), desc="evaluating", unit="image", leave=False, disable=not with_bar):
        sample = first[index]
        predictions.append(predict(sample))
        truths.append(without_pixels(sample))
    return truths, predictions


def without_pixels(sample: Sample) -> Sample:
    """The sample with a one-byte blank image of the same size and without its file, to save memory."""
    return replace(sample, file=None, image=np.broadcast_to(np.uint8(0), sample.image.shape))


def measure(truths: Sequence[Sample], predictions: Sequence[Prediction], labels: tuple[str, ...]) -> dict[str, Any]:
    """COCO's metrics (`coco_ap`), VOC's by both rules and, if every prediction has proposals, their recall.

    VOC_mAP, VOC_AP_by_class: area under the curve (VOC 2010 and later);  VOC_mAP_11, VOC_AP_11_by_class: eleven points
    (VOC 2007);  proposals: recall by the number of proposals, for each of NUMBERS that at least one image reaches.
    Raises ValueError if the samples have no object.
    """
    metrics = coco_ap(truths, predictions, labels)
    voc = voc_ap(truths, predictions, labels)
    del voc["VOC_curves"]
    metrics |= rounded(voc)
    regions = [prediction.proposals for prediction in predictions if prediction.proposals is not None]
    if len(regions) < len(predictions):
        return metrics
    most = max(len(one) for one in regions)
    numbers = tuple(number for number in NUMBERS if number <= most) or (most,)
    return metrics | {"proposals": rounded(proposal_recall(truths, regions, numbers)["by_number"])}


def rounded(value: Any) -> Any:
    """Rounds every float in nested dicts and lists to four decimals, as `coco_ap` does."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
