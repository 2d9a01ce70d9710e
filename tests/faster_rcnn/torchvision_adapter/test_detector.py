"""A wrapped torchvision detector answers for each image in a batch as torchvision does for that image alone.

Proposals and detections are matched as sets, because near ties may swap places (`graph.comparison.compare`).
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, detection, mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.detector.resize import ResizeRule, resize_image
from faster_rcnn.graph.comparison import DETECTIONS, PROPOSALS, Tolerance, boxes_of, compare
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from faster_rcnn.torchvision_adapter.extents import Unsupported
from tests.faster_rcnn.lively import lively_torchvision

CLOSE = Tolerance(0.1, 1e-3)
SMALL: dict[str, Any] = {"weights": None, "weights_backbone": None, "min_size": 96, "max_size": 192}


@cache
def images() -> list[np.ndarray]:
    """Generated images of several shapes, noise, an image of one colour, and one of a single pixel."""
    drawn = [
        resize_image(Shapes("test")[number].image, ResizeRule(*rule))[0]
        for number, rule in enumerate([(96, 140), (64, 96), (33, 70)])
    ]
    noise = np.random.default_rng(0).integers(80, 176, (97, 161, 3), dtype=np.uint8)
    # The image of one colour is small: in the middle of a large one anchors tie, and any of them may be kept.
    return [*drawn, noise, np.full((40, 60, 3), 127, np.uint8), np.zeros((1, 1, 3), np.uint8)]


def together(detector: TorchvisionDetector, canvas: tuple[int, int]) -> list[DetectorOutput]:
    """The answers for all images in one batch, with noise around them."""
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (len(images()), *canvas, 3), dtype=np.uint8)
    for place, image in enumerate(images()):
        batch[place, : image.shape[0], : image.shape[1]] = image
    sizes = torch.tensor([image.shape[:2] for image in images()])
    with torch.no_grad():
        answer = detector(torch.from_numpy(batch), sizes)
    return [DetectorOutput(*(values[place].numpy() for values in answer)) for place in range(len(batch))]


def check(
    model: FasterRCNN, detections: int, canvas: tuple[int, int] = (192, 224), shallow: bool = False
) -> TorchvisionDetector:
    """Compares the answers for every image; at least `detections` must have been found in all of them.

    shallow: a cell sees so little of the image that anchors tie even in the small image of one colour, which is left
    out.
    """
    detector = TorchvisionDetector(lively_torchvision(model))
    found = 0
    for answer, image in zip(together(detector, canvas), images(), strict=True):
        if shallow and image.std() == 0 and image.size > 3:
            continue
        expected = detector.alone_resized(image)
        for kind in (DETECTIONS, PROPOSALS):
            difference = compare(boxes_of(answer, kind, 0.0), boxes_of(expected, kind, 0.0), CLOSE)
            assert difference.unmatched == 0, (kind, image.shape, difference)
            assert difference.score < CLOSE.score
        found += int(answer.num_detections)
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
    check(getattr(detection, builder)(**SMALL, num_classes=7, rpn_post_nms_top_n_test=150), detections=200)


def test_torchvision_itself_answers_differently_if_a_larger_image_is_in_the_batch() -> None:
    """This dependence on the batch is the reason for the wrapper."""
    model = lively_torchvision(detection.fasterrcnn_mobilenet_v3_large_320_fpn(**SMALL, num_classes=7))
    model.transform.min_size, model.transform.max_size = (64,), 160
    first, second = (torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in (images()[1], images()[3]))
    with torch.no_grad():
        alone, beside = model([first])[0], model([first, second])[0]
    assert len(alone["boxes"]) != len(beside["boxes"]) or not torch.allclose(alone["boxes"], beside["boxes"], atol=0.5)


class Plain(nn.Module):
    """One map of stride 16, with group normalisation and without padding in its first layer."""

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
    """The features of a classifier as a backbone, as in torchvision's documentation."""

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


def test_a_backbone_with_a_single_map_answers_as_torchvision() -> None:
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
    """A feature pyramid on a ResNet with one block per layer, from the layers `returned`."""
    torch.manual_seed(0)
    body = ResNet(Bottleneck, [1, 1, 1, 1])
    names = {f"layer{layer}": str(place) for place, layer in enumerate(returned)}
    return BackboneWithFPN(body, names, [64 * 4 * 2 ** (layer - 1) for layer in returned], 64, **changes)


def pyramid(backbone: nn.Module, maps: int, pooled: int, **changes: Any) -> FasterRCNN:
    """Anchors of another scale on every map; regions are pooled from the first `pooled` maps."""
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


def test_a_pyramid_that_lacks_a_stride_keeps_torchvisions_zeros() -> None:
    # strides 4 and 16: torchvision counts three octaves for two maps, and pools nothing for regions of the third
    check(pyramid(shallow_pyramid([1, 3]), 3, 2), detections=50)


@pytest.mark.parametrize("divisible", [1, 64])
def test_canvases_of_other_multiples(divisible: int) -> None:
    backbone = shallow_pyramid([1, 2, 3, 4])
    check(pyramid(backbone, 5, 4, size_divisible=divisible), detections=100, canvas=(192, 256))


def test_thresholds_and_limits_are_the_models_own() -> None:
    changes: dict[str, Any] = {
        "rpn_pre_nms_top_n_test": 40, "rpn_nms_thresh": 0.5, "rpn_score_thresh": 0.3, "box_score_thresh": 0.2,
        "box_nms_thresh": 0.3, "box_detections_per_img": 9, "bbox_reg_weights": (5.0, 6.0, 7.0, 8.0),
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7],
    }  # fmt: skip
    detector = check(pyramid(shallow_pyramid([1, 2, 3, 4]), 5, 4, **changes), detections=20)
    assert detector.score_floor == 0.2
    assert max(int(answer.num_detections) for answer in together(detector, (192, 224))) == 9


def test_the_first_image_does_not_determine_the_scales() -> None:
    # From an image of 33 pixels on a canvas of 64 torchvision would derive stride 2 instead of 4, and keep it.
    model = lively_torchvision(detection.fasterrcnn_resnet50_fpn(**SMALL, num_classes=7))
    model.roi_heads.box_roi_pool.scales = None
    detector = TorchvisionDetector(model)
    detector.alone_resized(images()[2])
    assert model.roi_heads.box_roi_pool.scales is None
    assert detector.sampling.strides == (4, 8, 16, 32)


class Attention(nn.Module):
    """A layer in which every cell depends on every other cell."""

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
    """Its channels are split and joined again, one half after a wider window."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 16, stride=16), nn.ReLU6(inplace=True))
        self.wide = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.Hardswish())

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.stem(images).chunk(2, dim=1)
        return torch.cat([first, self.wide(second) + second], dim=1)


def test_a_backbone_whose_channels_are_split_and_joined() -> None:
    check(one_map(Halves()), detections=100)


class Overwriting(nn.Module):
    """Overwrites the input of its activation afterwards."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 16, stride=16), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        before = self.stem(images)
        after = torch.relu(before)
        before.mul_(-2.0)
        return self.wide(after)


def test_a_backbone_that_overwrites_the_input_of_an_activation() -> None:
    check(one_map(Overwriting()), detections=100)


class Patches(nn.Module):
    """Windows that do not overlap, as the body of a pyramid: patches of 4 pixels, then pooling."""

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
    """A layer after a stem."""

    out_channels = 16

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 16, 16, stride=16), tail

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.stem(images))


class Untracked(nn.Module):
    """Adds a tensor that was not computed from the images, and may hold anything outside them."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + torch.ones(maps.shape)


@pytest.mark.parametrize(
    ("backbone", "complaint"),
    [
        (Attention(), "flatten, and it is unknown whether that mixes neighbouring cells"),
        (Tail(Untracked()), "add on a feature map and on a tensor that was not computed from the images"),
        (Tail(nn.AdaptiveAvgPool2d(7)), "pools adaptively to 7"),
        (Tail(nn.Upsample(scale_factor=2, mode="bilinear")), "'bilinear' interpolation"),
        (Tail(nn.MaxPool2d(3, 2, ceil_mode=True)), "ceil_mode"),
        (Tail(nn.ConvTranspose2d(16, 16, 2, stride=2)), "conv_transpose2d"),
        (Tail(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")), "pads a feature map other than with zeros"),
    ],
    ids=["attention", "untracked", "adaptive", "bilinear", "ceil mode", "transposed", "reflected"],
)
def test_an_operation_that_cannot_be_kept_within_an_image_is_refused_by_name(
    backbone: nn.Module, complaint: str
) -> None:
    with pytest.raises(Unsupported, match=complaint):
        TorchvisionDetector(one_map(backbone))


def test_other_detectors_are_refused() -> None:
    mask = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(Unsupported, match="MaskRCNN also finds masks"):
        TorchvisionDetector(mask)
    with pytest.raises(Unsupported, match="RetinaNet is not a torchvision"):
        TorchvisionDetector(detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None))
    model = one_map(Plain())
    model.roi_heads.box_roi_pool = nn.Identity()
    with pytest.raises(Unsupported, match="box_roi_pool is Identity"):
        TorchvisionDetector(model)


def test_the_wrapper_shares_the_parameters_of_the_model() -> None:
    model = one_map(Plain())
    detector = TorchvisionDetector(model)
    assert {id(one) for one in detector.parameters()} == {id(one) for one in model.parameters()}


def test_computing_an_answer_for_one_image_does_not_change_the_model() -> None:
    model = one_map(Plain()).eval()
    detector = TorchvisionDetector(model)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    detector.alone_resized(images()[0])
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


class SelectiveRPN(RegionProposalNetwork):
    """Keeps only its best proposal."""

    def forward(self, images: Any, features: Any, targets: Any = None) -> Any:
        boxes, losses = super().forward(images, features, targets)
        return [one[:1] for one in boxes], losses


def test_an_rpn_whose_forward_finds_other_proposals_is_refused() -> None:
    model = lively_torchvision(one_map(Plain()))
    model.rpn.__class__ = SelectiveRPN
    with pytest.raises(Unsupported, match=r"SelectiveRPN\.forward finds other proposals than torchvision's RPN"):
        TorchvisionDetector(model).alone_resized(images()[0])


def test_the_card_holds_the_settings_that_determine_an_answer() -> None:
    changes: dict[str, Any] = {"box_score_thresh": 0.2, "rpn_post_nms_top_n_test": 77}
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, **changes)
    described = TorchvisionDetector(model).describe()
    assert described["box_score_thresh"] == 0.2
    assert described["rpn_post_nms_top_n"] == 77  # of inference, although the model was built in training mode
    assert described["rpn_pre_nms_top_n"] == 150
    assert described["anchor_sizes"] == [[32, 64, 128, 256, 512]] * 3
    assert (described["min_size"], described["max_size"]) == (320, 640)


def test_a_model_that_makes_every_image_one_size_is_refused() -> None:
    model = one_map(Plain(), fixed_size=(320, 240))
    with pytest.raises(Unsupported, match=r"every image 320×240 whatever its shape.*instead of fixed_size"):
        TorchvisionDetector(model)
