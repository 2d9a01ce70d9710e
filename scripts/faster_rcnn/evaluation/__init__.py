"""Measures detections and proposals: COCO's AP, VOC's mAP, the recall of proposals, and a report as a web page.

Other packages import these names from here, not from the modules.
"""

from faster_rcnn.evaluation.coco import coco_ap
from faster_rcnn.evaluation.measure import collect, evaluate, measure, without_pixels
from faster_rcnn.evaluation.predictors import Predictor, fast_rcnn_predictor, torch_predictor
from faster_rcnn.evaluation.recall import proposal_recall
from faster_rcnn.evaluation.voc import voc_ap

__all__ = [
    "Predictor",
    "coco_ap",
    "collect",
    "evaluate",
    "fast_rcnn_predictor",
    "measure",
    "proposal_recall",
    "torch_predictor",
    "voc_ap",
    "without_pixels",
]
