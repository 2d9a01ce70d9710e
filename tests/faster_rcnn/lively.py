"""Untrained detectors that have something to say."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck

from faster_rcnn.config import preset
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector import FasterRCNN


def lively(backbone: str, **changes: Any) -> FasterRCNN:
    """An untrained detector whose scores and boxes are spread out, so that a difference would show."""
    torch.manual_seed(1)
    detector = FasterRCNN(replace(preset(backbone, Shapes.labels), **changes)).eval()
    with torch.no_grad():
        for module in detector.backbone.modules():
            # without normalisations that know their data, what passes a MobileNet dies away and a ResNet's grows
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.2)
            elif isinstance(module, InvertedResidual):
                for normalisation in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
                    normalisation.weight.fill_(2.0)
                    normalisation.bias.normal_(std=0.1)
        for layer, factor in (
            (detector.rpn.cls_score, 100.0),
            (detector.rpn.bbox_pred, 5.0),
            (detector.head.cls_score, 60.0),
            (detector.head.bbox_pred, 300.0),
        ):
            layer.weight *= factor
    return detector
