"""The whole detector in PyTorch: it learns, and an image's answer depends on that image alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from faster_rcnn.config import DetectorConfig, canvases, preset
from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.loader import Batch, collate
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector import Answer, FasterRCNN
from faster_rcnn.losses import total
from faster_rcnn.resize import ResizeRule, resize_image
from tests.faster_rcnn.lively import lively


def small_picture(index: int) -> Sample:
    sample = Shapes("train")[index]
    image, scale_x, scale_y = resize_image(sample.image, ResizeRule(160, 320))
    scale = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
    return Sample(image, sample.boxes * scale, sample.labels)


def overlaps(answer: Answer, batch: Batch) -> torch.Tensor:
    """For each object of the first picture the best IoU of a detection with its label."""
    real = int(answer.num_detections[0])
    iou = box_iou(batch.truth[0].boxes, answer.boxes[0, :real])
    same_label = batch.truth[0].labels[:, None] == answer.labels[0, :real]
    return (iou * same_label).amax(dim=1) if real else torch.zeros(len(batch.truth[0].boxes))


def test_ten_steps_on_one_picture_reach_its_boxes() -> None:
    torch.manual_seed(0)
    picture = small_picture(5)
    detector = FasterRCNN(preset("compact", Shapes.labels)).train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # ten steps are too few for a running mean
    batch = collate([picture] * 4, detector.backbone.stride)
    optimiser = torch.optim.Adam(detector.parameters(), lr=1e-3)
    history = []
    for _ in range(10):
        loss = total(detector.losses(batch.images, batch.sizes, batch.truth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    with torch.no_grad():
        detector.losses(batch.images, batch.sizes, batch.truth)  # the normalisation's statistics after the last step
        answer = detector.eval()(batch.images, batch.sizes)
    assert history[-1] < history[0] / 3
    assert len(picture.boxes) == 4
    assert overlaps(answer, batch).min() > 0.5


@pytest.mark.parametrize("backbone", ["compact", "vgg16"])
def test_a_step_reaches_every_parameter(backbone: str) -> None:
    torch.manual_seed(0)
    config = replace(preset(backbone, Shapes.labels), head_units=64, rpn_channels=64, anchor_scales=(32.0, 64.0))
    detector = FasterRCNN(config).train()
    batch = collate([small_picture(3), small_picture(7)], detector.backbone.stride)
    losses = detector.losses(batch.images, batch.sizes, batch.truth)
    assert set(losses) == {"rpn_classification", "rpn_box", "head_classification", "head_box"}
    total(losses).backward()
    still = [name for name, parameter in detector.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert still == []


def test_a_batch_of_pictures_without_objects_trains() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(preset("compact", Shapes.labels)).train()
    empty = Sample(np.zeros((160, 200, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    batch = collate([empty, empty], detector.backbone.stride)
    losses = detector.losses(batch.images, batch.sizes, batch.truth)
    assert losses["rpn_box"].item() == losses["head_box"].item() == 0
    total(losses).backward()


def test_an_answer_depends_on_its_image_alone() -> None:
    detector = lively("compact")
    rng = np.random.default_rng(0)
    picture = torch.from_numpy(rng.integers(0, 256, (150, 190, 3), dtype=np.uint8))
    tight = torch.zeros(1, 160, 192, 3, dtype=torch.uint8)
    tight[0, :150, :190] = picture
    crowded = torch.from_numpy(rng.integers(0, 256, (3, 288, 304, 3), dtype=np.uint8))  # rubbish outside the sizes
    crowded[1, :150, :190] = picture
    with torch.no_grad():
        alone = detector(tight, torch.tensor([[150, 190]]))
        beside = detector(crowded, torch.tensor([[288, 304], [150, 190], [16, 16]]))
    assert int(alone.num_detections[0]) > 10
    for name, one, other in zip(Answer._fields, alone, beside, strict=True):
        torch.testing.assert_close(other[1], one[0], rtol=1e-3, atol=1e-2, msg=name)


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
    config = preset("compact", Shapes.labels)
    assert DetectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("backbone", ["compact", "vgg16"])
@pytest.mark.parametrize("ratio", [0.05, 0.4, 0.5, 0.75, 1.0, 1.2, 1.5, 1.777, 2.0, 3.0, 30.0])
def test_every_image_has_a_canvas(backbone: str, ratio: float) -> None:
    rule = preset(backbone, Shapes.labels).resize
    height, width = rule(round(3000 * ratio) or 1, 3000)
    assert any(h >= height and w >= width for h, w in canvases(rule, 16))
    assert all(h % 16 == 0 and w % 16 == 0 for h, w in canvases(rule, 16))


def test_a_map_too_large_for_roi_max_pooling_is_refused() -> None:
    config = replace(preset("vgg16", Shapes.labels), resize=ResizeRule(600, 1800), head_units=8)
    with pytest.raises(ValueError, match="maps of up to 105 cells a side, the resize rule asks for 113"):
        FasterRCNN(config)


def test_one_class_is_enough() -> None:
    detector = FasterRCNN(replace(preset("compact", ("thing",)), head_units=8)).eval()
    with torch.no_grad():
        answer = detector(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.tensor([[32, 32]]))
    assert answer.labels.eq(0).all()


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'alexnet'; there are: compact, vgg16"):
        preset("alexnet", ("a",))
