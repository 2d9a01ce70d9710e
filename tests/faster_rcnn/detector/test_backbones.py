"""Backbones, compared with torchvision's models."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone

from faster_rcnn.detector.anchor_shapes import STRIDES
from faster_rcnn.detector.backbones import BACKBONES, VGG16, Backbone, Compact, MobileNetV3Large, ResNet50


def seeded(name: str) -> Backbone:
    """A backbone in evaluation mode whose normalisations have random statistics, as after training."""
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
            module.bias.data.normal_(std=0.1)  # so that zeros outside the image become non-zero
    return backbone


def test_the_table_of_strides_is_that_of_the_backbones() -> None:
    """`faster-rcnn check` reads the table, because building a backbone needs torch."""
    with torch.device("meta"):
        assert {name: build().strides for name, build in BACKBONES.items()} == STRIDES


def on_a_tight_canvas(backbone: Backbone, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return backbone(image, torch.tensor([image.shape[2:]] * len(image)))


def test_vgg16_equals_the_first_thirty_layers_of_torchvisions_vgg16() -> None:
    backbone = VGG16().eval()
    theirs = torchvision.models.vgg16(weights=None)
    missing = backbone.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert all(name.startswith("classifier.") for name in missing.unexpected_keys)
    image = torch.randn(1, 3, 64, 96)
    (features,) = on_a_tight_canvas(backbone, image)
    with torch.no_grad():
        torch.testing.assert_close(features, theirs.features[:30](image))
    assert features.shape == (1, 512, 4, 6)


def test_resnet50_equals_torchvisions_resnet50_up_to_layer3() -> None:
    backbone = seeded("resnet50")
    assert isinstance(backbone, ResNet50)
    theirs = torchvision.models.resnet50(weights=None).eval()
    missing = theirs.load_state_dict(backbone.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert all(name.startswith(("layer4.", "fc.")) for name in missing.missing_keys)
    image = torch.randn(1, 3, 64, 96)
    (features,) = on_a_tight_canvas(backbone, image)
    whole = nn.Sequential(*list(theirs.children())[:-3])  # all but layer4, the pooling and fc
    with torch.no_grad():
        torch.testing.assert_close(features, whole(image))
    assert features.shape == (1, 1024, 4, 6)


def test_mobilenet_equals_the_dilated_variant_of_torchvision_up_to_block_15() -> None:
    backbone = seeded("mobilenet_v3_large")
    assert isinstance(backbone, MobileNetV3Large)
    theirs = torchvision.models.mobilenet_v3_large(weights=None, dilated=True).eval()
    missing = theirs.load_state_dict(backbone.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    image = torch.randn(1, 3, 64, 96)
    (features,) = on_a_tight_canvas(backbone, image)
    with torch.no_grad():
        torch.testing.assert_close(features, theirs.features[:16](image), rtol=1e-4, atol=1e-5)
    assert features.shape == (1, 160, 4, 6)


def test_the_resnet_pyramid_equals_that_of_torchvision() -> None:
    backbone = seeded("resnet50_fpn")
    theirs = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d).eval()
    theirs.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 96, 64)
    found = on_a_tight_canvas(backbone, image)
    with torch.no_grad():
        expected = theirs(image)
    assert list(expected) == ["0", "1", "2", "3", "pool"]
    for one, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [(one.shape[2], one.shape[3]) for one in found] == [(24, 16), (12, 8), (6, 4), (3, 2), (2, 1)]


def test_the_mobilenet_pyramid_equals_that_of_torchvision() -> None:
    backbone = seeded("mobilenet_v3_large_fpn")
    theirs = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d
    ).eval()
    theirs.load_state_dict(
        {name.replace("body.features.", "body."): tensor for name, tensor in backbone.state_dict().items()}
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # the classifier's value, which mobilenet_backbone does not set with this norm_layer
    image = torch.randn(1, 3, 96, 64)
    found = on_a_tight_canvas(backbone, image)
    with torch.no_grad():
        expected = theirs(image)
    assert list(expected) == ["0", "1", "pool"]
    for one, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("size", [(64, 96), (63, 81), (33, 50)])
def test_features_depend_on_the_image_alone(name: str, size: tuple[int, int]) -> None:
    """On the smallest canvas and in a batch on a larger one, features are equal inside the image and zero outside."""
    backbone = seeded(name)
    height, width = size
    canvas = [-(-side // backbone.stride) * backbone.stride for side in size]
    image = torch.randn(3, height, width)
    tight, large = torch.zeros(1, 3, *canvas), torch.zeros(3, 3, 128, 160)
    tight[0, :, :height, :width] = image
    large[1, :, :height, :width] = image
    large[0] = torch.randn(3, 128, 160)
    sizes = torch.tensor([[128, 160], [height, width], [0, 0]])
    with torch.no_grad():
        alone, batched = backbone(tight, sizes[1:2]), backbone(large, sizes)
    assert len(alone) == len(backbone.strides)
    for one, other, stride in zip(alone, batched, backbone.strides, strict=True):
        h, w = -(-height // stride), -(-width // stride)
        largest = float(one.abs().max())
        assert largest > 0.01
        torch.testing.assert_close(other[1, :, :h, :w], one[0, :, :h, :w], rtol=1e-4, atol=2e-5 * largest)
        assert one[0, :, h:].eq(0).all()
        assert other[1, :, h:].eq(0).all()
        assert other[1, :, :, w:].eq(0).all()
        assert other[2].eq(0).all()
        assert one.shape[1] == backbone.out_channels
        assert backbone.signed or one.min() >= 0


STAGES = {
    "compact": ("conv1", "conv9", 9),
    "vgg16": ("conv1_1", "conv5_3", 13),
    "resnet50": ("conv1", "layer3", 4),
    "resnet50_fpn": ("conv1", "layer4", 5),
    "mobilenet_v3_large": ("0", "15", 16),
    "mobilenet_v3_large_fpn": ("0", "16", 17),
}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_stages_contain_the_whole_backbone_except_a_pyramids_own_layers(name: str) -> None:
    backbone = BACKBONES[name]()
    names = [stage for stage, _ in backbone.stages]
    assert (names[0], names[-1], len(names)) == STAGES[name]
    staged = [id(one) for _, modules in backbone.stages for module in modules for one in module.parameters()]
    own = [id(one) for part, one in backbone.named_parameters() if not part.startswith("fpn.")]
    assert sorted(staged) == sorted(own)


def test_vgg16s_stages_have_the_papers_names() -> None:
    assert [stage for stage, _ in VGG16().stages][4:8] == ["conv3_1", "conv3_2", "conv3_3", "conv4_1"]


def test_compact_has_fewer_than_a_million_parameters() -> None:
    assert sum(parameter.numel() for parameter in Compact().parameters()) < 1_000_000
