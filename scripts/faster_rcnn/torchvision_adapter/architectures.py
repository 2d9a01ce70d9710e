"""Recognises other detectors by the names of their tensors, so that an error can name them."""

import re
from collections.abc import Iterable

# The first pattern that occurs in a name decides. A name may have any prefix.
SIGNS = (
    (r"roi_heads\.mask_predictor\.", "torchvision's Mask R-CNN"),
    (r"roi_heads\.keypoint_predictor\.", "torchvision's Keypoint R-CNN"),
    (r"backbone\.bottom_up\.|proposal_generator\.|backbone\.fpn_lateral\d|roi_heads\.res5\.", "Detectron2"),
    (r"roi_heads\.box\.(predictor|feature_extractor)\.", "maskrcnn-benchmark"),
    (
        r"(^|\.)roi_head\.bbox_head\.|rpn_head\.rpn_(cls|reg|conv)|neck\.(lateral|fpn)_convs\.|bbox_head\.",
        "MMDetection",
    ),
    (r"head\.regression_head\.bbox_ctrness\.", "torchvision's FCOS"),
    (r"head\.classification_head\.module_list\.", "torchvision's SSD or SSDLite"),
    (r"head\.classification_head\.cls_logits\.", "torchvision's RetinaNet"),
    (r"(^|\.)RCNN_(rpn|base|top|cls_score|bbox_pred)\b", "faster-rcnn.pytorch"),
    (r"(^|\.)extractor\.\d+\..*|head\.cls_loc\.", "simple-faster-rcnn-pytorch"),
    (r"backbone\.backbone\.(dark|stem)|head\.(cls|reg|obj)_preds\.", "YOLOX"),
    (r"(^|\.)\d+\.(cv\d|m\.\d+\.cv\d|cv\d\.\d+\.\d+|dfl)\.|(^|\.)model\.\d+\.(conv|m\.\d+)\.", "a YOLO model"),
    (r"(class_embed|query_embed|bbox_embed)\.|transformer\.(encoder|decoder)\.", "DETR or one of its relatives"),
    (r"(bifpn|class_net|box_net)\.", "EfficientDet"),
    (r"(^|\.)rpn\.cls_score\.", "this project's own detector; publish its run with faster-rcnn export RUN"),
    (r"(?<!body\.)(?<!backbone\.)\b(features\.\d|layer1\.0\.conv1)", "an image classifier"),
)


def recognise(names: Iterable[str]) -> str | None:
    """The detector whose tensors have such names; None for torchvision's Faster R-CNN and unknown ones."""
    text = list(names)  # gone through once for each sign
    return next((name for sign, name in SIGNS if any(re.search(sign, one) for one in text)), None)
