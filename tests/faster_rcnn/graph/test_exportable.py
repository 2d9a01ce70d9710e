"""Which detectors can be exported, and how they describe themselves."""

import pytest
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, retinanet_resnet50_fpn

from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph.exportable import exportable
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from faster_rcnn.torchvision_adapter.extents import Unsupported
from tests.faster_rcnn.lively import lively


def test_a_detector_of_this_project_is_exported_as_it_is() -> None:
    detector = lively("compact")
    assert exportable(detector) is detector
    assert detector.labels == detector.config.labels
    assert detector.antialias
    assert detector.describe() == detector.config.to_dict()


def test_a_model_of_torchvision_is_wrapped_once() -> None:
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    detector = exportable(model)
    assert isinstance(detector, TorchvisionDetector)
    assert exportable(detector) is detector
    assert (detector.classes, detector.labels, detector.antialias) == (3, None, False)
    assert detector.for_export(cpu_only=True) is detector


def test_another_detector_of_torchvision_is_refused() -> None:
    model: nn.Module = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(Unsupported, match="RetinaNet is not a torchvision"):
        TorchvisionDetector(model)


def test_for_export_returns_a_copy_and_does_not_change_the_detector() -> None:
    detector = lively("vgg16", head_units=16, rpn_channels=16, resize=ResizeRule(1200, 2000))
    on_cpu = detector.for_export(cpu_only=True)
    assert not on_cpu.portable_max_pooling
    assert detector.portable_max_pooling
    assert on_cpu.head.cls_score.weight is detector.head.cls_score.weight
    with pytest.raises(ValueError, match="export with --provider cpu"):
        detector.for_export(cpu_only=False)  # 125 cells a side, too many for the form that every provider computes
