"""Default configurations, canvases, and configurations as JSON."""

import json

import pytest
import torchvision

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.config import DEFAULTS, DetectorConfig, canvases, default_config
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.weights import CLASSIFIERS


def test_a_configuration_is_the_same_after_a_round_trip_through_json() -> None:
    config = default_config("compact", Shapes.labels)
    assert DetectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("backbone", sorted(DEFAULTS))
@pytest.mark.parametrize("ratio", [0.05, 0.4, 0.5, 0.75, 1.0, 1.2, 1.5, 1.777, 2.0, 3.0, 30.0])
def test_every_image_has_a_canvas(backbone: str, ratio: float) -> None:
    rule = default_config(backbone, Shapes.labels).resize
    height, width = rule(round(3000 * ratio) or 1, 3000)
    assert any(h >= height and w >= width for h, w in canvases(rule, 16))
    assert all(h % 16 == 0 and w % 16 == 0 for h, w in canvases(rule, 16))


def test_an_unknown_backbone_is_refused_with_a_list_of_the_backbones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown backbone 'alexnet'; choose from: compact, mobilenet_v3_large, .*vgg16"
    ):
        default_config("alexnet", ("a",))


@pytest.mark.parametrize("backbone", sorted(CLASSIFIERS))
def test_images_are_normalised_as_the_imagenet_weights_expect(backbone: str) -> None:
    transforms = torchvision.models.get_model_weights(CLASSIFIERS[backbone]).IMAGENET1K_V1.transforms()
    config = default_config(backbone, ("a",))
    assert (list(config.mean), list(config.std)) == (transforms.mean, transforms.std)


def test_every_backbone_has_a_default_configuration() -> None:
    assert set(DEFAULTS) == set(BACKBONES)
    for backbone in BACKBONES:
        config = default_config(backbone, ("a", "b"))
        assert (config.backbone, config.labels) == (backbone, ("a", "b"))


def test_canvases_follow_the_aspect_ratios_of_cameras() -> None:
    # shorter side 96; longer sides 96, 112, 128, 144 and 170.7 → 176 from the ratios, and 192 from max_size
    sides = (96, 112, 128, 144, 176, 192)
    expected = {(96, side) for side in sides} | {(side, 96) for side in sides}
    found = canvases(ResizeRule(96, 192), 16)
    assert set(found) == expected
    assert len(found) == 11
    areas = [height * width for height, width in found]
    assert areas == sorted(areas)
