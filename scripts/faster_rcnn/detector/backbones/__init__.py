"""Backbones by their names."""

from collections.abc import Callable

import torch

from faster_rcnn.detector.backbones.base import Backbone
from faster_rcnn.detector.backbones.compact import Compact
from faster_rcnn.detector.backbones.freezing import freeze_before
from faster_rcnn.detector.backbones.mobilenet_v3 import MobileNetV3Large
from faster_rcnn.detector.backbones.pyramid import mobilenet_v3_large_fpn, resnet50_fpn
from faster_rcnn.detector.backbones.resnet50 import ResNet50
from faster_rcnn.detector.backbones.vgg16 import VGG16

__all__ = [
    "BACKBONES",
    "VGG16",
    "Backbone",
    "Compact",
    "MobileNetV3Large",
    "ResNet50",
    "autocast_dtype",
    "freeze_before",
]

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "compact": Compact,
    "mobilenet_v3_large": MobileNetV3Large,
    "mobilenet_v3_large_fpn": mobilenet_v3_large_fpn,
    "resnet50": ResNet50,
    "resnet50_fpn": resnet50_fpn,
    "vgg16": VGG16,
}


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where this hardware is faster in it, else None. float16 would need its loss scaled."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
