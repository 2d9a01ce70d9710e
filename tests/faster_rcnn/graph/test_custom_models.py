"""A torchvision Faster R-CNN that nobody else has, published from Python."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.resize import ResizeRule, resize_image
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.publish import publish
from faster_rcnn.graph.verification import Boxes, Tolerance, compare

LABELS = ("hat", *reversed(Shapes.labels))  # more than the data has, and in another order
FLOAT32 = Tolerance(box=0.01, score=1e-5)  # both see the same bytes


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    """One feature map of stride 16, anchors, sizes, thresholds and normalisation of its own.

    Every cell sees the image's border, else all scores of a blank image were equal and their order nobody's.
    """
    torch.manual_seed(3)
    channels = (3, 8, 16, 24, 24)
    layers = [layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 7, 2, 3), nn.ReLU())]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 24  # type: ignore[assignment]  # where torchvision looks for it
    custom = FasterRCNN(
        backbone,
        num_classes=1 + len(LABELS),
        min_size=96,
        max_size=160,
        image_mean=[0.3, 0.3, 0.3],
        image_std=[0.25, 0.25, 0.25],
        rpn_anchor_generator=AnchorGenerator(((16, 40, 90),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=40,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_score_thresh=0.1,
        box_detections_per_img=30,
    ).eval()
    predictor = custom.roi_heads.box_predictor
    with torch.no_grad():
        for layer, factor in (
            (custom.rpn.head.cls_logits, 50.0),
            (custom.rpn.head.bbox_pred, 5.0),
            (predictor.cls_score, 20.0),
            (predictor.bbox_pred, 20.0),
        ):
            layer.weight *= factor
    return custom


@pytest.fixture(scope="module")
def folder(model: FasterRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Shapes("test", 4)
    return publish(
        model,
        tmp_path_factory.mktemp("store"),
        "mine",
        1,
        training={"by": "me"},
        measured_on="shapes/test",
        test=renumber(data, LABELS, "mine"),
        images=[data[index].image for index in range(4)],
        labels=LABELS,
    )


def test_its_card_tells_what_it_is_and_what_it_was_measured_on(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    assert card["labels"] == list(LABELS)
    assert card["resize"] == {"min_size": 96, "max_size": 160, "antialias": False}
    assert card["detector"]["anchor_sizes"] == [[16, 40, 90]]
    assert card["detector"]["box_detections_per_img"] == 30
    assert card["training"] == {"by": "me"}
    assert card["metrics"]["shapes/test"]["pictures"] == 4
    assert set(card["metrics"]["shapes/test"]["AP_by_class"]) == set(LABELS)


def test_it_answers_as_torchvision_on_images_of_its_own_size(model: FasterRCNN, folder: Path) -> None:
    predict = onnx_predictor(folder)
    for index in range(10, 18):
        image, _, _ = resize_image(Shapes("test")[index].image, ResizeRule(96, 160))
        found = predict(Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
        with torch.no_grad():
            answer = model([torch.tensor(image).permute(2, 0, 1) / 255])[0]
        theirs = Boxes(
            answer["boxes"].numpy(),
            answer["scores"].numpy(),
            answer["labels"].numpy() - 1,
            cut=float(answer["scores"].min()) if len(answer["scores"]) == 30 else 0.1,
        )
        assert len(theirs.boxes) > 5
        difference = compare(Boxes(found.boxes, found.scores, found.labels, cut=0.1), theirs, FLOAT32)
        assert difference.unmatched == 0, (index, difference)
        assert difference.score <= FLOAT32.score
