"""Freezing the first stages of a backbone."""

import pytest

from faster_rcnn.detector.freezing import freeze_before
from tests.faster_rcnn.lively import lively


@pytest.mark.parametrize(
    ("backbone", "name", "frozen_stages"),
    [
        ("vgg16", "conv3_1", 4),
        ("resnet50", "layer2", 2),
        ("mobilenet_v3_large_fpn", "fc6", 17),
        ("compact", "conv1", 0),
    ],
)
def test_all_layers_before_the_stage_are_frozen_and_no_others(backbone: str, name: str, frozen_stages: int) -> None:
    detector = lively(backbone, head_units=8)
    frozen = freeze_before(detector, name)
    stages = detector.backbone.stages
    assert frozen == [module for _, modules in stages[:frozen_stages] for module in modules]
    frozen_parameters = {id(one) for module in frozen for one in module.parameters()}
    assert all(one.requires_grad != (id(one) in frozen_parameters) for one in detector.parameters())


def test_an_unknown_stage_is_refused_with_a_list_of_the_stages() -> None:
    with pytest.raises(
        ValueError, match="resnet50 has no stage 'conv3_1' to train from; choose conv1, layer1, layer2, layer3, fc6"
    ):
        freeze_before(lively("resnet50", head_units=8), "conv3_1")
