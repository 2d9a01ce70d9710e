"""The whole detector in PyTorch: it can be trained, and the output for an image depends on that image alone."""

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
from faster_rcnn.detector.anchor_shapes import scales_of_maps
from faster_rcnn.detector.config import DEFAULTS, default_config
from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN
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


def overlaps(output: DetectorOutput, batch: Batch) -> torch.Tensor:
    """For each object of the first image, the highest IoU with a detection of the same label."""
    real = int(output.num_detections[0])
    iou = box_iou(batch.truth[0].boxes, output.boxes[0, :real])
    same_label = batch.truth[0].labels[:, None] == output.labels[0, :real]
    return (iou * same_label).amax(dim=1) if real else torch.zeros(len(batch.truth[0].boxes))


def test_ten_training_steps_on_one_image_fit_its_boxes() -> None:
    torch.manual_seed(0)
    sample = small_image(5)
    detector = FasterRCNN(default_config("compact", Shapes.labels)).train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # a running mean would need more than ten steps
    batch = collate([sample] * 4, detector.backbone.stride)
    optimiser = torch.optim.Adam(detector.parameters(), lr=1e-3)
    history = []
    for _ in range(10):
        loss = total(joint_losses(detector, batch, mixed_precision=False))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    with torch.no_grad():
        # This updates the statistics of the normalisations after the last step.
        joint_losses(detector, batch, mixed_precision=False)
        output = detector.eval()(batch.images, batch.sizes)
    assert history[-1] < history[0] / 3
    assert len(sample.boxes) == 4
    assert overlaps(output, batch).min() > 0.5


@pytest.mark.parametrize("backbone", sorted(DEFAULTS))
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    scales = {} if backbone.endswith("_fpn") else {"anchor_scales": (32.0, 64.0)}
    detector = lively(backbone, head_units=64, rpn_channels=64, **scales).train()
    batch = collate([small_image(3), small_image(7)], detector.backbone.stride)
    losses = joint_losses(detector, batch, mixed_precision=False)
    assert set(losses) == {"rpn_classification", "rpn_box", "head_classification", "head_box"}
    total(losses).backward()
    without_gradient = [name for name, parameter in detector.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without_gradient == []


def test_a_batch_without_objects_can_be_trained_on() -> None:
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
def test_the_output_for_an_image_depends_on_that_image_alone(backbone: str, pooling: str) -> None:
    scales = {} if backbone.endswith("_fpn") else {"anchor_scales": (32.0, 64.0)}
    detector = lively(backbone, head_units=64, rpn_channels=64, roi_pooling=pooling, resize=SMALL, **scales)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (150, 190, 3), dtype=np.uint8))
    tight = torch.zeros(1, 160, 192, 3, dtype=torch.uint8)
    tight[0, :150, :190] = pixels
    crowded = torch.from_numpy(rng.integers(0, 256, (3, 224, 256, 3), dtype=np.uint8))  # random bytes outside the sizes
    crowded[1, :150, :190] = pixels
    with torch.no_grad():
        alone = detector(tight, torch.tensor([[150, 190]]))
        batched = detector(crowded, torch.tensor([[224, 256], [150, 190], [16, 16]]))
    assert int(alone.num_detections[0]) > 10
    assert alone.num_detections[0] == batched.num_detections[1]
    assert alone.num_proposals[0] == batched.num_proposals[1]
    torch.testing.assert_close(batched.scores[1], alone.scores[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(batched.objectness[1], alone.objectness[0], rtol=0, atol=1e-4)
    for one, other in ((alone.boxes[0], batched.boxes[1]), (alone.proposals[0], batched.proposals[1])):
        apart = torch.cdist(one, other, p=math.inf)  # the order of equal scores is not defined
        assert apart.amin(dim=0).max() < 0.01
        assert apart.amin(dim=1).max() < 0.01


def test_boxes_lie_inside_their_image_and_are_sorted_by_score() -> None:
    detector = lively("compact")
    images = torch.randint(0, 256, (2, 160, 192, 3), dtype=torch.uint8)
    sizes = torch.tensor([[150, 190], [33, 47]])
    with torch.no_grad():
        output = detector(images, sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        for boxes, scores in ((output.boxes, output.scores), (output.proposals, output.objectness)):
            assert boxes[image].min() >= 0
            assert boxes[image][:, 0::2].max() <= width
            assert boxes[image][:, 1::2].max() <= height
            assert (scores[image].diff() <= 0).all()


def test_a_map_too_large_for_roi_max_pooling_on_a_gpu_is_refused() -> None:
    config = replace(default_config("vgg16", Shapes.labels), resize=ResizeRule(600, 1800), head_units=8)
    with pytest.raises(ValueError, match="maps of up to 105 cells per side, but the resize rule needs 113"):
        FasterRCNN(config).check_map_size()


def test_the_size_of_a_pyramids_finest_map_is_checked() -> None:
    config = replace(default_config("resnet50_fpn", Shapes.labels), roi_pooling="max", resize=ResizeRule(320, 480))
    with pytest.raises(ValueError, match="maps of up to 105 cells per side, but the resize rule needs 120"):  # 480 / 4
        FasterRCNN(config).check_map_size()


def test_anchor_scales_are_divided_evenly_among_the_maps() -> None:
    assert scales_of_maps(default_config("resnet50", ("a",)), 1) == [(32, 64, 128, 256, 512)]
    assert scales_of_maps(default_config("resnet50_fpn", ("a",)), 5) == [(32,), (64,), (128,), (256,), (512,)]
    assert scales_of_maps(default_config("mobilenet_v3_large_fpn", ("a",)), 3)[1] == (91, 128, 181)
    with pytest.raises(ValueError, match="resnet50_fpn has 5 feature maps, but 3 anchor scales are given"):
        FasterRCNN(replace(default_config("resnet50_fpn", ("a",)), anchor_scales=(32.0, 64.0, 128.0)))


def test_each_map_of_a_pyramid_has_the_anchors_of_its_scale() -> None:
    detector = lively("resnet50_fpn", head_units=8)
    sizes = torch.tensor([[96, 128]])
    with torch.no_grad():
        rpn = detector.regions(detector.features(torch.zeros(1, 96, 128, 3, dtype=torch.uint8), sizes), sizes)
    # 24 × 32, 12 × 16, 6 × 8, 3 × 4 and 2 × 2 locations with three ratios each
    assert rpn.levels == (2304, 576, 144, 36, 12)
    sides = (rpn.anchors[:, 2:] - rpn.anchors[:, :2]).prod(dim=1).sqrt()
    for scale, part in zip((32, 64, 128, 256, 512), sides.split(list(rpn.levels)), strict=True):
        torch.testing.assert_close(part, torch.full_like(part, scale))
    assert rpn.scores.shape == (1, 3072, 2)
    assert rpn.valid.all()


def test_a_detector_may_have_a_single_class() -> None:
    detector = FasterRCNN(replace(default_config("compact", ("thing",)), head_units=8)).eval()
    with torch.no_grad():
        output = detector(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.tensor([[32, 32]]))
    assert output.labels.eq(0).all()


def test_alone_agrees_with_forward_and_returns_arrays() -> None:
    detector = lively("compact")
    image = np.random.default_rng(0).integers(0, 256, (150, 190, 3), np.uint8)
    output = detector.alone_resized(image)
    canvas = torch.zeros(1, 160, 192, 3, dtype=torch.uint8)  # 150 and 190 rounded up to multiples of 16
    canvas[0, :150, :190] = torch.from_numpy(image)
    with torch.no_grad():
        expected = detector(canvas, torch.tensor([[150, 190]]))
    assert output.num_detections > 0
    for found, tensor in zip(output, expected, strict=True):
        np.testing.assert_array_equal(found, tensor[0].numpy())
