"""A version is published completely or not published; a custom torchvision Faster R-CNN is published from Python."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule, resize_image
from faster_rcnn.graph.comparison import Boxes, Disagreement, Tolerance, compare
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.publish import Measurement, next_version, publish
from faster_rcnn.graph.verification import Verifier
from faster_rcnn.graph.version_graphs import GraphOptions
from tests.faster_rcnn.lively import lively

IMAGES = [Shapes("test")[index].image for index in range(6)]
LABELS = ("hat", *reversed(Shapes.labels))  # more than the data has, and in another order
FLOAT32 = Tolerance(box=0.01, score=1e-5)  # both see the same bytes


@pytest.fixture(scope="module")
def model() -> TorchvisionFasterRCNN:
    """One feature map of stride 16, anchors, sizes, thresholds and normalisation of its own.

    Every cell sees the image's border. Otherwise all scores of a blank image would be equal, and their order undefined.
    """
    torch.manual_seed(3)
    channels = (3, 8, 16, 24, 24)
    layers = [layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 7, 2, 3), nn.ReLU())]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 24  # type: ignore[assignment]  # torchvision reads it there
    custom = TorchvisionFasterRCNN(
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
def folder(model: TorchvisionFasterRCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Shapes("test", 4)
    return publish(
        model,
        tmp_path_factory.mktemp("store"),
        "mine",
        1,
        training={"by": "me"},
        labels=LABELS,
        images=[data[index].image for index in range(4)],
        measurement=Measurement(renumber(data, LABELS, "mine"), "shapes/test"),
    )


@pytest.mark.contract("4.1")
def test_the_card_says_what_the_model_is_and_what_it_was_measured_on(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    assert card["labels"] == list(LABELS)
    assert card["resize"] == {"min_size": 96, "max_size": 160, "antialias": False}
    assert card["detector"]["anchor_sizes"] == [[16, 40, 90]]
    assert card["detector"]["box_detections_per_img"] == 30
    assert card["training"] == {"by": "me"}
    assert card["metrics"]["shapes/test"]["pictures"] == 4
    assert set(card["metrics"]["shapes/test"]["AP_by_class"]) == set(LABELS)


def test_a_custom_model_answers_as_torchvision_on_images_of_its_own_size(
    model: TorchvisionFasterRCNN, folder: Path
) -> None:
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


@pytest.fixture
def small() -> FasterRCNN:
    """A detector for small images."""
    return lively("compact", resize=ResizeRule(96, 192))


@pytest.mark.contract("4.2")
def test_a_version_is_published_completely_or_not_published(
    small: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        "training": {"command": "a test"},
        "images": IMAGES,
        "measurement": Measurement(Shapes("test", 3), "shapes/test"),
    }
    folder = publish(small, tmp_path, "toy", next_version(tmp_path, "toy"), **arguments)
    assert folder == tmp_path / "toy" / "1"
    card = json.loads((folder / "model.json").read_text())
    assert {
        "name", "version", "labels", "canvases", "resize", "score_threshold", "metrics", "training", "opset", "sha256"
    } <= set(card)  # fmt: skip
    assert card["labels"] == list(Shapes.labels)
    assert card["resize"] == {"min_size": 96, "max_size": 192}  # antialiased, which the card does not mention
    assert (card["precision"], card["provider"]) == ("fp32", "any")
    assert card["metrics"]["shapes/test"]["pictures"] == 3
    assert card["verification"]["to_alone"]["unmatched"] == 0
    assert next_version(tmp_path, "toy") == 2
    with pytest.raises(FileExistsError, match="already exists; choose another --version"):
        publish(small, tmp_path, "toy", 1, **arguments)

    def disagree(*_: object) -> None:
        raise Disagreement("boxes differ")

    monkeypatch.setattr(Verifier, "verify", disagree)
    with pytest.raises(Disagreement):
        publish(small, tmp_path, "toy", 2, **arguments)
    files = {"example.jpg", "model.cuda.onnx", "model.json", "model.onnx", "result.jpg"}
    assert {entry.name for entry in tmp_path.rglob("*")} == {"toy", "1"} | files


def test_the_options_reach_the_graph_and_the_card(small: FasterRCNN, tmp_path: Path) -> None:
    folder = publish(small, tmp_path, "half", 3, training={}, images=IMAGES[:2], options=GraphOptions("fp16", "cpu"))
    card = json.loads((folder / "model.json").read_text())
    assert (card["precision"], card["provider"], card["metrics"]) == ("fp16", "cpu", {})
    types = {one.data_type for one in onnx.load(folder / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert {entry.name for entry in folder.iterdir()} == {"model.json", "model.onnx"}  # nothing measured, no example


@pytest.mark.parametrize(
    ("name", "version", "complaint"),
    [
        ("-toy", 1, "no model '-toy' of version 1"),
        ("a/b", 1, "no model 'a/b'"),
        ("toy", -1, "no model 'toy' of version -1"),
    ],
)
def test_a_name_that_the_service_would_not_load_is_refused(
    small: FasterRCNN, tmp_path: Path, name: str, version: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=f"the service accepts {complaint}"):
        publish(small, tmp_path, name, version, training={})
    assert not list(tmp_path.iterdir())
