"""How good detections and proposals are: COCO's AP, VOC's mAP, recall of proposals, and a report to look at."""

from faster_rcnn.evaluation.coco import coco_ap
from faster_rcnn.evaluation.measure import Predictor, collect, evaluate, measure, torch_predictor
from faster_rcnn.evaluation.recall import proposal_recall
from faster_rcnn.evaluation.voc import voc_ap

__all__ = ["Predictor", "coco_ap", "collect", "evaluate", "measure", "proposal_recall", "torch_predictor", "voc_ap"]
