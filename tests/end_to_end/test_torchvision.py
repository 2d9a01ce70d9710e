"""A user's torchvision checkpoint, exported and served, gives torchvision's own answers over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual

import faster_rcnn
from faster_rcnn.graph.comparison import Boxes, Tolerance, compare
from tests.end_to_end.conftest import ROOT, answer, encoded, scene
from tests.end_to_end.test_parity import check_against_pytorch, check_against_the_service

BUILDER = "fasterrcnn_mobilenet_v3_large_320_fpn"
LABELS = ["red cell", "white cell", "platelet"]
FLOOR = 0.05  # torchvision's box_score_thresh; no detection below it is returned
MOST = 100  # torchvision's box_detections_per_img

# An image of the model's own size is not resized, so both see the same bytes and differ only by float32 rounding.
SAME_PIXELS = Tolerance(box=0.01, score=1e-4)
# The service rounds the resized image to bytes, and torchvision computes with float32. They differ by up to half a
# value in 255, which moves boxes and scores a little. In the pixels of a larger original, corners lie further apart.
ROUNDED_PIXELS = Tolerance(box=0.3, score=1e-3)


def talkative() -> torchvision.models.detection.FasterRCNN:
    """An untrained model whose scores and boxes are spread out."""
    torch.manual_seed(6)
    model = torchvision.models.get_model(BUILDER, weights=None, weights_backbone=None, num_classes=1 + len(LABELS))
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for module in model.backbone.modules():
            if isinstance(module, InvertedResidual):
                for normalisation in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
                    normalisation.weight.fill_(2.0)  # otherwise an untrained MobileNet's features vanish
                    normalisation.bias.normal_(std=0.1)
        for layer, factor in (
            (model.rpn.head.cls_logits, 100.0),
            (model.rpn.head.bbox_pred, 5.0),
            (predictor.cls_score, 60.0),
            (predictor.bbox_pred, 100.0),
        ):
            layer.weight *= factor
    return model.eval()


def by_torchvision(model: nn.Module, image: Image.Image) -> Boxes:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32) / 255
    with torch.no_grad():
        found = {name: values.numpy() for name, values in model([pixels])[0].items()}
    return boxes(found["boxes"], found["scores"], found["labels"] - 1)


def boxes(corners: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Boxes:
    return Boxes(corners.reshape(-1, 4), scores, labels, cut=scores.min() if len(scores) == MOST else FLOOR)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The model, and the store to which it was exported."""
    folder = tmp_path_factory.mktemp("torchvision")
    model = talkative()
    torch.save({"model": model.state_dict(), "epoch": 25}, folder / "model_25.pth")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    done = subprocess.run(
        [
            sys.executable, "scripts/export.py", "--torchvision", BUILDER, "--checkpoint", folder / "model_25.pth",
            "--labels", folder / "labels.txt", "--name", "cells", "--store", folder / "store", "--provider", "cpu",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cells/1" in done.stdout.splitlines()[-1]
    return model, folder / "store"


def test_the_service_answers_as_torchvision_does(published, start):
    model, store = published
    server = start(MODEL_STORE=store, DEFAULT_MODEL="cells").ready()
    for (width, height), tolerance in (
        ((427, 320), SAME_PIXELS),
        ((320, 640), SAME_PIXELS),
        ((803, 611), ROUNDED_PIXELS),  # reduced for the model
        ((150, 201), ROUNDED_PIXELS),  # enlarged
        ((1200, 300), ROUNDED_PIXELS),  # limited by its longer side
    ):
        image = scene(width, height, seed=width)
        found = answer(
            server.http.post(
                "/detect",
                params={"score_threshold": 0, "max_detections": MOST},
                content=encoded(image),
                headers={"content-type": "image/png"},
            )
        )
        labels = np.array([LABELS.index(name) for name in found["labels"]])
        ours = boxes(np.array(found["boxes"]), np.array(found["scores"]), labels)
        theirs = by_torchvision(model, image)
        assert len(theirs.boxes) > 20
        difference = compare(ours, theirs, tolerance)
        assert difference.unmatched == 0, (width, height, difference)
        assert difference.score <= tolerance.score


def test_the_call_in_python_gives_the_answer_of_the_service(published, start):
    model, store = published
    server = start(MODEL_STORE=store, DEFAULT_MODEL="cells").ready()
    by_graph = faster_rcnn.open_model(store / "cells" / "1")
    check_against_the_service(by_graph, server.http)
    check_against_pytorch(by_graph, faster_rcnn.open_model(model, labels=LABELS), longest=640)


def test_the_card_names_the_models_origin_and_its_way_of_resizing(published):
    _, store = published
    card = json.loads((store / "cells" / "1" / "model.json").read_text())
    assert card["labels"] == LABELS
    assert card["resize"] == {"min_size": 320, "max_size": 640, "antialias": False}
    assert card["metrics"] == {}
    assert card["training"]["torchvision"] == BUILDER
    assert card["training"]["checkpoint"] == "model_25.pth"
    assert card["detector"]["box_score_thresh"] == FLOOR
    assert card["verification"]["to_alone"]["unmatched"] == 0
    assert {file.name for file in (store / "cells" / "1").iterdir()} == {"model.json", "model.onnx"}
