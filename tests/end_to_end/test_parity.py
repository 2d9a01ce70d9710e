"""One image, one answer: from a checkpoint in Python, from the published model in Python, and from the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import faster_rcnn
from faster_rcnn.data.dataset import Sample
from faster_rcnn.detector.checkpoint import NAME, save_state
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.evaluation import torch_predictor
from faster_rcnn.graph.comparison import Boxes, Difference, Tolerance, compare
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.publish import publish
from faster_rcnn.graph.verification import Verification
from faster_rcnn.prediction import prepare_image
from service.images.decode import ORIENTATION, upright
from tests.end_to_end.conftest import encoded, scene
from tests.faster_rcnn.lively import lively, lively_torchvision
from tests.service.images.png16 import png16

WHITE = 4095
LABELS = ["one", "two"]
# Boxes and scores of PyTorch and ONNX Runtime differ by rounding (contract 1.3); the boxes in canvas pixels, so in the
# original they may differ by more if it is larger than its canvas.
ROUNDING = Tolerance(box=0.1, score=1e-3)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def uploads() -> dict[str, bytes]:
    deep = np.asarray(scene(90, 70), float) * WHITE / 255
    return {
        "tiny": encoded(scene(9, 7)),
        "one pixel": encoded(Image.new("RGB", (1, 1), "red")),
        "tall": encoded(scene(20, 130)),
        "wide": encoded(scene(300, 24)),
        "turned by EXIF": encoded(scene(120, 90), "JPEG", exif=turned(6)),
        "large JPEG": encoded(scene(900, 700), "JPEG"),  # decoded at a part of its size
        "CMYK": encoded(scene(110, 90).convert("CMYK"), "JPEG"),
        "grey": encoded(scene(110, 90).convert("L")),
        "transparent": encoded(scene(110, 90).convert("RGBA").rotate(20, fillcolor=(0, 0, 0, 0))),
        "12 bits, RGB": png16(np.rint(deep)),
        "12 bits, grey": png16(np.rint(deep[..., 1])),
    }


def small_torchvision() -> torchvision.models.detection.FasterRCNN:
    torch.manual_seed(0)
    model = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None, num_classes=3,
        min_size=64, max_size=128, rpn_post_nms_top_n_test=50, box_detections_per_img=20,
    )  # fmt: skip
    return lively_torchvision(model)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The store, and for each model the loaded PyTorch and published forms."""
    folder = tmp_path_factory.mktemp("parity")
    own = lively("compact", resize=ResizeRule(64, 128), white=WHITE)
    save_state(folder / NAME, own, "joint", 1)
    theirs = small_torchvision()
    with pytest.MonkeyPatch.context() as patch:  # the verification takes a minute, and has tests of its own
        nothing = Verification(0, 0, 0, Difference(), Difference())
        patch.setattr("faster_rcnn.graph.publish.verify", lambda *_: nothing)
        publish(own, folder / "store", "own", 1, training={})
        publish(theirs, folder / "store", "theirs", 1, training={}, labels=LABELS)
    in_pytorch = {
        "own": faster_rcnn.open_model(folder),
        "theirs": faster_rcnn.open_model(theirs, labels=LABELS),
    }
    published = {name: faster_rcnn.open_model(folder / "store" / name / "1") for name in in_pytorch}
    return {"folder": folder, "in PyTorch": in_pytorch, "published": published}


def boxes_of(found: faster_rcnn.Detections) -> Boxes:
    return Boxes(found.boxes, found.scores, found.label_indices, 0.0)


@pytest.mark.contract("6.4")
def test_python_and_the_service_give_the_same_answer(models: dict[str, Any], start: Any) -> None:
    server = start(MODEL_STORE=models["folder"] / "store", DEFAULT_MODEL="own").ready()
    compared = 0
    for name, published in models["published"].items():
        for what, data in uploads().items():
            asked = {"model": name, "score_threshold": 0, "proposals": True}
            served = server.http.post("/detect", params=asked, files={"image": data}).json()
            found = published.detect(data, score_threshold=0)
            # the service rounds boxes to three decimals and scores to six
            assert found.boxes.astype(float).round(3).tolist() == served["boxes"], (name, what)
            assert found.scores.astype(float).round(6).tolist() == served["scores"], (name, what)
            assert found.labels == served["labels"]
            assert found.proposals.astype(float).round(3).tolist() == served["proposals"]["boxes"]
            assert [found.width, found.height] == [served["image"]["width"], served["image"]["height"]]
            assert list(found.warnings) == [one["reason"] for one in served["warnings"]]
            compared += len(found.boxes)
    assert compared > 100


@pytest.mark.parametrize("name", ["own", "theirs"])
@pytest.mark.contract("6.4")
def test_a_checkpoint_and_the_published_model_give_the_same_answer(models: dict[str, Any], name: str) -> None:
    for what, data in uploads().items():
        in_pytorch = models["in PyTorch"][name].detect(data, score_threshold=0)
        published = models["published"][name].detect(data, score_threshold=0)
        larger = max(1.0, max(published.width, published.height) / 128)  # original pixels per canvas pixel
        allowed = Tolerance(ROUNDING.box * larger, ROUNDING.score)
        difference = compare(boxes_of(in_pytorch), boxes_of(published), allowed)
        assert not difference.unmatched, (name, what, difference)


def test_a_batch_gives_what_each_image_gives_alone(models: dict[str, Any]) -> None:
    published = models["published"]["own"]
    images = list(uploads().values())
    for alone, together in zip(
        [published.detect(one, 0) for one in images], published.detect_batch(images, 0, batch_size=3), strict=True
    ):
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=0.1)  # contract 1.2, in larger originals
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-4)
        assert together.labels == alone.labels


@pytest.mark.contract("6.4")
def test_evaluation_and_proposals_see_the_image_that_the_service_sees(models: dict[str, Any]) -> None:
    """Evaluation decodes the file as the service does, at a part of its size where the service does so."""
    own = faster_rcnn.load_detector(models["folder"])
    for data in uploads().values():
        whole = np.asarray(upright(data, white=WHITE))
        sample = Sample(whole, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), file=data)
        for predict, name in (
            (torch_predictor(own), "in PyTorch"),
            (onnx_predictor(models["folder"] / "store" / "own" / "1"), "published"),
        ):
            predicted, found = predict(sample), models[name]["own"].detect(data, score_threshold=0)
            np.testing.assert_allclose(predicted.boxes, found.boxes, atol=0.01)
            np.testing.assert_allclose(predicted.proposals, found.proposals, atol=0.01)
        assert prepare_image(own, sample).size.tolist() == [list(whole.shape[:2])]


def test_a_path_an_array_and_a_pillow_image_give_the_same_answer(models: dict[str, Any], tmp_path: Path) -> None:
    image = scene(100, 80)
    file = tmp_path / "image.png"
    image.save(file)
    model = models["published"]["own"]
    expected = model.detect(file, 0)
    for form in (str(file), file.read_bytes(), image, np.asarray(image)):
        assert model.detect(form, 0).boxes.tolist() == expected.boxes.tolist()


def test_what_open_model_cannot_use_is_refused_with_the_remedy(models: dict[str, Any], tmp_path: Path) -> None:
    store = models["folder"] / "store"
    with pytest.raises(ValueError, match=r"holds the versions 1; name one, such as .*own/1"):
        faster_rcnn.open_model(store / "own")
    with pytest.raises(ValueError, match="is a published model; which, labels and white"):
        faster_rcnn.open_model(store / "own" / "1", which="best")
    with pytest.raises(ValueError, match="2 classes without background, labels are for none"):
        faster_rcnn.open_model(small_torchvision())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        faster_rcnn.open_model(tmp_path / "nowhere")
    save_state(tmp_path / NAME, lively("compact"), "rpn", 1)
    with pytest.raises(ValueError, match="has trained only the rpn part"):
        faster_rcnn.open_model(tmp_path)
    with pytest.raises(ValueError, match="needs a list of images; use detect"):
        models["published"]["own"].detect_batch("image.jpg")
