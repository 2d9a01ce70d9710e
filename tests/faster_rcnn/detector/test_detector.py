"""The whole detector in PyTorch: it learns, and an image's answer depends on that image alone."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.loader import Batch, collate
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import DEFAULTS, DetectorConfig, canvases, default_config
from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN, scales_of_maps
from faster_rcnn.detector.losses import total
from faster_rcnn.detector.resize import ResizeRule, resize_image
from faster_rcnn.training.objectives import joint_losses
from tests.faster_rcnn.lively import lively

SMALL = ResizeRule(224, 288)


def small_image(index: int) -> Sample:
    sample = Shapes("train")[index]
    image, scale_x, scale_y = resize_image(sample.image, ResizeRule(160, 320))
    scale = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
    return Sample(image, sample.boxes * scale, sample.labels)


def overlaps(answer: DetectorOutput, batch: Batch) -> torch.Tensor:
    """For each object of the first image the best IoU of a detection with its label."""
    real = int(answer.num_detections[0])
    iou = box_iou(batch.truth[0].boxes, answer.boxes[0, :real])
    same_label = batch.truth[0].labels[:, None] == answer.labels[0, :real]
    return (iou * same_label).amax(dim=1) if real else torch.zeros(len(batch.truth[0].boxes))


def test_ten_steps_on_one_image_reach_its_boxes() -> None:
    torch.manual_seed(0)
    picture = small_image(5)
    detector = FasterRCNN(default_config("compact", Shapes.labels)).train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # ten steps are too few for a running mean
    batch = collate([picture] * 4, detector.backbone.stride)
    optimiser = torch.optim.Adam(detector.parameters(), lr=1e-3)
    history = []
    for _ in range(10):
        loss = total(joint_losses(detector, batch, mixed_precision=False))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    with torch.no_grad():
        joint_losses(detector, batch, mixed_precision=False)  # the normalisation's statistics after the last step
        answer = detector.eval()(batch.images, batch.sizes)
    assert history[-1] < history[0] / 3
    assert len(picture.boxes) == 4
    assert overlaps(answer, batch).min() > 0.5


@pytest.mark.parametrize("backbone", sorted(DEFAULTS))
def test_a_step_reaches_every_parameter(backbone: str) -> None:
    scales = {} if backbone.endswith("_fpn") else {"anchor_scales": (32.0, 64.0)}
    detector = lively(backbone, head_units=64, rpn_channels=64, **scales).train()
    batch = collate([small_image(3), small_image(7)], detector.backbone.stride)
    losses = joint_losses(detector, batch, mixed_precision=False)
    assert set(losses) == {"rpn_classification", "rpn_box", "head_classification", "head_box"}
    total(losses).backward()
    still = [name for name, parameter in detector.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert still == []


def test_a_batch_of_images_without_objects_trains() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(default_config("compact", Shapes.labels)).train()
    empty = Sample(np.zeros((160, 200, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    batch = collate([empty, empty], detector.backbone.stride)
    losses = joint_losses(detector, batch, mixed_precision=False)
    assert losses["rpn_box"].item() == losses["head_box"].item() == 0
    total(losses).backward()


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        ("compact", "align"),
        ("vgg16", "max"),
        ("resnet50", "align"),
        ("resnet50_fpn", "align"),
        ("resnet50_fpn", "max"),
        ("mobilenet_v3_large", "align"),
        ("mobilenet_v3_large", "max"),
        ("mobilenet_v3_large_fpn", "align"),
    ],
)
def test_an_answer_depends_on_its_image_alone(backbone: str, pooling: str) -> None:
    scales = {} if backbone.endswith("_fpn") else {"anchor_scales": (32.0, 64.0)}
    detector = lively(backbone, head_units=64, rpn_channels=64, roi_pooling=pooling, resize=SMALL, **scales)
    rng = np.random.default_rng(0)
    picture = torch.from_numpy(rng.integers(0, 256, (150, 190, 3), dtype=np.uint8))
    tight = torch.zeros(1, 160, 192, 3, dtype=torch.uint8)
    tight[0, :150, :190] = picture
    crowded = torch.from_numpy(rng.integers(0, 256, (3, 224, 256, 3), dtype=np.uint8))  # rubbish outside the sizes
    crowded[1, :150, :190] = picture
    with torch.no_grad():
        alone = detector(tight, torch.tensor([[150, 190]]))
        beside = detector(crowded, torch.tensor([[224, 256], [150, 190], [16, 16]]))
    assert int(alone.num_detections[0]) > 10
    assert alone.num_detections[0] == beside.num_detections[1]
    assert alone.num_proposals[0] == beside.num_proposals[1]
    torch.testing.assert_close(beside.scores[1], alone.scores[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(beside.objectness[1], alone.objectness[0], rtol=0, atol=1e-4)
    for one, other in ((alone.boxes[0], beside.boxes[1]), (alone.proposals[0], beside.proposals[1])):
        apart = torch.cdist(one, other, p=math.inf)  # equal scores have no order
        assert apart.amin(dim=0).max() < 0.01
        assert apart.amin(dim=1).max() < 0.01


def test_boxes_lie_inside_their_image_best_first() -> None:
    detector = lively("compact")
    images = torch.randint(0, 256, (2, 160, 192, 3), dtype=torch.uint8)
    sizes = torch.tensor([[150, 190], [33, 47]])
    with torch.no_grad():
        answer = detector(images, sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        for boxes, scores in ((answer.boxes, answer.scores), (answer.proposals, answer.objectness)):
            assert boxes[image].min() >= 0
            assert boxes[image][:, 0::2].max() <= width
            assert boxes[image][:, 1::2].max() <= height
            assert (scores[image].diff() <= 0).all()


def test_a_configuration_survives_json() -> None:
    config = default_config("compact", Shapes.labels)
    assert DetectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("backbone", sorted(DEFAULTS))
@pytest.mark.parametrize("ratio", [0.05, 0.4, 0.5, 0.75, 1.0, 1.2, 1.5, 1.777, 2.0, 3.0, 30.0])
def test_every_image_has_a_canvas(backbone: str, ratio: float) -> None:
    rule = default_config(backbone, Shapes.labels).resize
    height, width = rule(round(3000 * ratio) or 1, 3000)
    assert any(h >= height and w >= width for h, w in canvases(rule, 16))
    assert all(h % 16 == 0 and w % 16 == 0 for h, w in canvases(rule, 16))


def test_a_map_too_large_for_roi_max_pooling_on_a_gpu_is_refused() -> None:
    config = replace(default_config("vgg16", Shapes.labels), resize=ResizeRule(600, 1800), head_units=8)
    with pytest.raises(ValueError, match="maps of up to 105 cells a side, the resize rule asks for 113"):
        FasterRCNN(config).check_map_size()


def test_a_pyramids_finest_map_is_the_one_that_must_not_be_too_large() -> None:
    config = replace(default_config("resnet50_fpn", Shapes.labels), roi_pooling="max", resize=ResizeRule(320, 480))
    with pytest.raises(ValueError, match="maps of up to 105 cells a side, the resize rule asks for 120"):  # 480 / 4
        FasterRCNN(config).check_map_size()


def test_anchor_scales_are_dealt_to_the_maps() -> None:
    assert scales_of_maps(default_config("resnet50", ("a",)), 1) == [(32, 64, 128, 256, 512)]
    assert scales_of_maps(default_config("resnet50_fpn", ("a",)), 5) == [(32,), (64,), (128,), (256,), (512,)]
    assert scales_of_maps(default_config("mobilenet_v3_large_fpn", ("a",)), 3)[1] == (91, 128, 181)
    with pytest.raises(ValueError, match="resnet50_fpn has 5 feature maps and 3 anchor scales to deal to them"):
        FasterRCNN(replace(default_config("resnet50_fpn", ("a",)), anchor_scales=(32.0, 64.0, 128.0)))


def test_a_pyramids_anchors_stand_on_the_map_of_their_scale() -> None:
    detector = lively("resnet50_fpn", head_units=8)
    sizes = torch.tensor([[96, 128]])
    with torch.no_grad():
        rpn = detector.regions(detector.features(torch.zeros(1, 96, 128, 3, dtype=torch.uint8), sizes), sizes)
    # 24 × 32, 12 × 16, 6 × 8, 3 × 4 and 2 × 2 places, three ratios each
    assert rpn.levels == (2304, 576, 144, 36, 12)
    sides = (rpn.anchors[:, 2:] - rpn.anchors[:, :2]).prod(dim=1).sqrt()
    for scale, part in zip((32, 64, 128, 256, 512), sides.split(list(rpn.levels)), strict=True):
        torch.testing.assert_close(part, torch.full_like(part, scale))
    assert rpn.scores.shape == (1, 3072, 2)
    assert rpn.valid.all()


def test_one_class_is_enough() -> None:
    detector = FasterRCNN(replace(default_config("compact", ("thing",)), head_units=8)).eval()
    with torch.no_grad():
        answer = detector(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.tensor([[32, 32]]))
    assert answer.labels.eq(0).all()


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"unknown backbone 'alexnet'; there are: compact, mobilenet_v3_large, .*vgg16"
    ):
        default_config("alexnet", ("a",))
