"""Backbones by name."""

from collections.abc import Callable

from faster_rcnn.detector.backbones.base import Backbone
from faster_rcnn.detector.backbones.compact import Compact
from faster_rcnn.detector.backbones.mobilenet_v3 import MobileNetV3Large
from faster_rcnn.detector.backbones.pyramid import mobilenet_v3_large_fpn, resnet50_fpn
from faster_rcnn.detector.backbones.resnet50 import ResNet50
from faster_rcnn.detector.backbones.vgg16 import VGG16

__all__ = ["BACKBONES", "VGG16", "Backbone", "Compact", "MobileNetV3Large", "ResNet50"]

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "compact": Compact,
    "mobilenet_v3_large": MobileNetV3Large,
    "mobilenet_v3_large_fpn": mobilenet_v3_large_fpn,
    "resnet50": ResNet50,
    "resnet50_fpn": resnet50_fpn,
    "vgg16": VGG16,
}
