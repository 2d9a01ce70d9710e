"""torchvision's detectors answer for each image as torchvision answers for that image alone.

Proposals and detections are matched as sets: near ties may swap places (`graph.verification.compare`).
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, detection, mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.resize import ResizeRule, resize_image
from faster_rcnn.graph.verification import Boxes, Tolerance, compare
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from faster_rcnn.torchvision_adapter.extents import Unsupported
from tests.faster_rcnn.lively import lively_torchvision

CLOSE = Tolerance(0.1, 1e-3)
SMALL: dict[str, Any] = {"weights": None, "weights_backbone": None, "min_size": 96, "max_size": 192}


def pictures() -> list[np.ndarray]:
    """Drawn ones of several shapes, noise, a blank one, and one of a single pixel."""
    drawn = [
        resize_image(Shapes("test")[number].image, ResizeRule(*rule))[0]
        for number, rule in enumerate([(96, 140), (64, 96), (33, 70)])
    ]
    noise = np.random.default_rng(0).integers(80, 176, (97, 161, 3), dtype=np.uint8)
    # of one colour, and not larger: in the middle of a large one anchors tie, and each runtime keeps others
    return [*drawn, noise, np.full((40, 60, 3), 127, np.uint8), np.zeros((1, 1, 3), np.uint8)]


def together(detector: TorchvisionDetector, canvas: tuple[int, int]) -> list[list[np.ndarray]]:
    """The answers for all images in one batch, rubbish around them."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (len(pictures()), *canvas, 3), dtype=np.uint8)
    for place, picture in enumerate(pictures()):
        images[place, : picture.shape[0], : picture.shape[1]] = picture
    sizes = torch.tensor([picture.shape[:2] for picture in pictures()])
    with torch.no_grad():
        answer = detector(torch.from_numpy(images), sizes)
    return [[values[place].numpy() for values in answer] for place in range(len(images))]


def boxes(answer: Any, kind: str) -> Boxes:
    number, rows, scores, labels = answer[:4] if kind == "detections" else [*answer[4:7], np.zeros(len(answer[6]))]
    number = int(number)
    cut = float(scores.min()) if number == len(scores) else 0.0
    return Boxes(rows[:number], scores[:number], labels[:number], cut)


def check(
    model: FasterRCNN, detections: int, canvas: tuple[int, int] = (192, 224), shallow: bool = False
) -> TorchvisionDetector:
    """Compares every image, and that there was something to compare.

    shallow: a cell sees so little that even in the small image of one colour anchors tie; it is left out.
    """
    detector = TorchvisionDetector(lively_torchvision(model))
    found = 0
    for answer, picture in zip(together(detector, canvas), pictures(), strict=True):
        if shallow and picture.std() == 0 and picture.size > 3:
            continue
        wanted = detector.alone(picture)
        for kind in ("detections", "proposals"):
            difference = compare(boxes(answer, kind), boxes(wanted, kind), CLOSE)
            assert difference.unmatched == 0, (kind, picture.shape, difference)
            assert difference.score < CLOSE.score
        found += int(answer[0])
    assert found >= detections
    return detector


@pytest.mark.parametrize(
    "builder",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
    ],
)
def test_every_builder_answers_as_torchvision_does_for_each_image_alone(builder: str) -> None:
    check(getattr(detection, builder)(**SMALL, num_classes=7), detections=200)


def test_torchvisions_own_batch_does_not() -> None:
    """Why all this: beside a larger image torchvision finds other boxes than for the image alone."""
    model = lively_torchvision(detection.fasterrcnn_mobilenet_v3_large_320_fpn(**SMALL, num_classes=7))
    model.transform.min_size, model.transform.max_size = (64,), 160
    first, second = (
        torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255 for picture in (pictures()[1], pictures()[3])
    )
    with torch.no_grad():
        alone, beside = model([first])[0], model([first, second])[0]
    assert len(alone["boxes"]) != len(beside["boxes"]) or not torch.allclose(alone["boxes"], beside["boxes"], atol=0.5)


class Plain(nn.Module):
    """One map of stride 16, normalised in groups, without padding in its first layer."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4), nn.GroupNorm(4, 16), nn.SiLU(),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(16, 32, 3, stride=2), nn.GELU(), nn.Conv2d(32, 32, 3, padding="same"),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class OneMap(nn.Module):
    """A classifier's features as a backbone, as torchvision's documentation shows it."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features, self.out_channels = features, channels

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def one_map(backbone: nn.Module, **changes: Any) -> FasterRCNN:
    pool = MultiScaleRoIAlign(["0"], changes.pop("output_size", 7), changes.pop("sampling_ratio", 2))
    anchors = AnchorGenerator(((32, 64, 128),), ((0.5, 1.0, 2.0),))
    return FasterRCNN(
        backbone, 5, rpn_anchor_generator=anchors, box_roi_pool=pool, min_size=96, max_size=192,
        rpn_post_nms_top_n_test=100, **changes,
    )  # fmt: skip


def test_a_backbone_with_a_single_map() -> None:
    detector = check(one_map(OneMap(mobilenet_v2().features, 1280)), detections=100)
    assert detector.sampling.strides == (32,)


def test_a_backbone_with_group_normalisation_and_windows_of_many_kinds() -> None:
    check(one_map(Plain()), detections=100)


def test_a_backbone_whose_layers_see_the_channels_last() -> None:
    check(one_map(OneMap(convnext_tiny().features, 768)), detections=100)


@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_any_sampling_ratio_and_a_pooled_size_that_is_not_square(ratio: int) -> None:
    torch.manual_seed(0)
    pooled = 32 * 3 * 5
    head = nn.Sequential(nn.Flatten(), nn.Linear(pooled, 64), nn.ReLU())
    predictor = detection.faster_rcnn.FastRCNNPredictor(64, 5)
    pool = MultiScaleRoIAlign(["0"], (3, 5), ratio)
    anchors = AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
    model = FasterRCNN(
        Plain(), rpn_anchor_generator=anchors, box_roi_pool=pool, box_head=head, box_predictor=predictor, min_size=96,
        max_size=192, rpn_post_nms_top_n_test=60,
    )  # fmt: skip
    check(model, detections=100)


def shallow_pyramid(returned: list[int], **changes: Any) -> nn.Module:
    """A feature pyramid on a ResNet of one block a layer, from the layers `returned`."""
    torch.manual_seed(0)
    body = ResNet(Bottleneck, [1, 1, 1, 1])
    names = {f"layer{layer}": str(place) for place, layer in enumerate(returned)}
    return BackboneWithFPN(body, names, [64 * 4 * 2 ** (layer - 1) for layer in returned], 64, **changes)


def pyramid(backbone: nn.Module, maps: int, pooled: int, **changes: Any) -> FasterRCNN:
    """Other scales and ratios on every map; regions from the first `pooled`."""
    sizes = tuple((16 * 2**level, 24 * 2**level) for level in range(maps))
    ratios = ((0.5, 2.0),) * maps
    pool = MultiScaleRoIAlign([str(level) for level in range(pooled)], 7, 2, canonical_scale=48, canonical_level=3)
    return FasterRCNN(
        backbone, 5, rpn_anchor_generator=AnchorGenerator(sizes, ratios), box_roi_pool=pool, min_size=96, max_size=192,
        rpn_post_nms_top_n_test=150, **changes,
    )  # fmt: skip


def test_a_pyramid_of_six_maps_whose_last_two_are_convolutions() -> None:
    # strides 4 … 128: the last two maps do not divide a canvas of multiples of 32
    backbone = shallow_pyramid([1, 2, 3, 4], extra_blocks=LastLevelP6P7(64, 64))
    check(pyramid(backbone, 6, 4), detections=100)


def test_a_pyramid_with_a_stride_left_out_keeps_torchvisions_zeros() -> None:
    # strides 4 and 16: torchvision counts three octaves for two maps, and pools nothing for regions of the third
    check(pyramid(shallow_pyramid([1, 3]), 3, 2), detections=50)


@pytest.mark.parametrize("divisible", [1, 64])
def test_canvases_of_other_multiples(divisible: int) -> None:
    backbone = shallow_pyramid([1, 2, 3, 4])
    check(pyramid(backbone, 5, 4, size_divisible=divisible), detections=100, canvas=(192, 256))


def test_thresholds_and_numbers_are_the_models_own() -> None:
    changes: dict[str, Any] = {
        "rpn_pre_nms_top_n_test": 40, "rpn_nms_thresh": 0.5, "rpn_score_thresh": 0.3, "box_score_thresh": 0.2,
        "box_nms_thresh": 0.3, "box_detections_per_img": 9, "bbox_reg_weights": (5.0, 6.0, 7.0, 8.0),
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7],
    }  # fmt: skip
    detector = check(pyramid(shallow_pyramid([1, 2, 3, 4]), 5, 4, **changes), detections=20)
    assert detector.score_floor == 0.2
    assert detector.forward.__doc__
    number = [int(answer[0]) for answer in together(detector, (192, 224))]
    assert max(number) == 9


def test_the_first_image_does_not_spoil_the_scales() -> None:
    # an image of 33 pixels on a canvas of 64 makes torchvision take stride 2 for stride 4, for ever
    model = lively_torchvision(detection.fasterrcnn_resnet50_fpn(**SMALL, num_classes=7))
    model.roi_heads.box_roi_pool.scales = None
    detector = TorchvisionDetector(model)
    detector.alone(pictures()[2])
    assert model.roi_heads.box_roi_pool.scales is None
    assert detector.sampling.strides == (4, 8, 16, 32)


class Attention(nn.Module):
    """Every cell sees every other."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 16, stride=16)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        tokens = maps.flatten(2)
        return (
            (torch.softmax(tokens.transpose(1, 2) @ tokens, dim=2) @ tokens.transpose(1, 2))
            .transpose(1, 2)
            .reshape(maps.shape)
        )


class Halves(nn.Module):
    """Its channels part and meet again, one half behind a wider window."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 16, stride=16), nn.ReLU6(inplace=True))
        self.wide = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.Hardswish())

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.stem(images).chunk(2, dim=1)
        return torch.cat([first, self.wide(second) + second], dim=1)


def test_a_backbone_whose_channels_part_and_meet_again() -> None:
    check(one_map(Halves()), detections=100)


class Overwriting(nn.Module):
    """What went into its activation is overwritten afterwards."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 16, stride=16), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        before = self.stem(images)
        after = torch.relu(before)
        before.mul_(-2.0)
        return self.wide(after)


def test_a_backbone_that_overwrites_what_went_into_an_activation() -> None:
    check(one_map(Overwriting()), detections=100)


class Patches(nn.Module):
    """Windows that do not overlap: a patch of 4 pixels, then pooling, as the body of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True))
        self.layer3 = nn.Sequential(nn.Conv2d(32, 64, 2, stride=2), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(images)))


def test_a_pyramid_on_windows_that_do_not_overlap() -> None:
    torch.manual_seed(0)
    names = {f"layer{number}": str(number - 1) for number in (1, 2, 3)}
    check(pyramid(BackboneWithFPN(Patches(), names, [16, 32, 64], 64), 4, 3), detections=100, shallow=True)


class Tail(nn.Module):
    """A layer behind a stem."""

    out_channels = 16

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 16, 16, stride=16), tail

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.stem(images))


class Untracked(nn.Module):
    """What comes from elsewhere may hold anything outside the image."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + torch.ones(maps.shape)


@pytest.mark.parametrize(
    ("backbone", "complaint"),
    [
        (Attention(), "flatten.* of which is not known whether it looks beyond a cell"),
        (Tail(Untracked()), "add.* something of which nothing is known"),
        (Tail(nn.AdaptiveAvgPool2d(7)), "pools adaptively to 7"),
        (Tail(nn.Upsample(scale_factor=2, mode="bilinear")), "'bilinear' interpolation"),
        (Tail(nn.MaxPool2d(3, 2, ceil_mode=True)), "ceil_mode"),
        (Tail(nn.ConvTranspose2d(16, 16, 2, stride=2)), "conv_transpose2d"),
        (Tail(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")), "pads a feature map other than with zeros"),
    ],
    ids=["attention", "untracked", "adaptive", "bilinear", "ceil mode", "transposed", "reflected"],
)
def test_what_cannot_be_kept_within_an_image_is_refused_by_name(backbone: nn.Module, complaint: str) -> None:
    with pytest.raises(Unsupported, match=complaint):
        TorchvisionDetector(one_map(backbone))


def test_other_detectors_are_refused() -> None:
    mask = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(Unsupported, match="MaskRCNN also finds masks"):
        TorchvisionDetector(mask)
    with pytest.raises(Unsupported, match="RetinaNet is no"):
        TorchvisionDetector(detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None))
    model = one_map(Plain())
    model.roi_heads.box_roi_pool = nn.Identity()
    with pytest.raises(Unsupported, match="box_roi_pool is Identity"):
        TorchvisionDetector(model)


def test_the_parameters_are_the_models_own() -> None:
    model = one_map(Plain())
    detector = TorchvisionDetector(model)
    assert {id(one) for one in detector.parameters()} == {id(one) for one in model.parameters()}
