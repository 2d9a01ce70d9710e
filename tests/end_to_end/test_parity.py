"""One image, one answer: from a checkpoint in Python, from the published model in Python, and from the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import faster_rcnn
from faster_rcnn.data.dataset import Sample
from faster_rcnn.detector.checkpoint import NAME, save_state
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.evaluation import torch_predictor
from faster_rcnn.graph.comparison import Boxes, Difference, Tolerance, compare
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.publish import publish
from faster_rcnn.graph.verification import Verification, Verifier
from faster_rcnn.graph.version_graphs import GraphOptions
from faster_rcnn.prediction import prepare_image
from service.images.decode import ORIENTATION, upright
from tests.end_to_end.conftest import encoded, scene
from tests.faster_rcnn.lively import lively
from tests.service.images.png16 import png16

WHITE = 4095


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint, and `store` with its published form."""
    folder = tmp_path_factory.mktemp("parity")
    own = lively("compact", resize=ResizeRule(64, 128), white=WHITE)
    save_state(folder / NAME, own, "joint", 1)
    with pytest.MonkeyPatch.context() as patch:  # the verification takes long, and has tests of its own
        nothing = Verification(0, 0, 0, Difference(), Difference())
        patch.setattr(Verifier, "verify", lambda *_: nothing)
        publish(own, folder / "store", "own", 1, training={}, options=GraphOptions(provider="cpu"))
    return folder


@pytest.fixture(scope="module")
def in_pytorch(folder: Path) -> faster_rcnn.Model:
    return faster_rcnn.open_model(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> faster_rcnn.Model:
    return faster_rcnn.open_model(folder / "store" / "own" / "1")


def check_against_the_service(published: faster_rcnn.Model, http: httpx.Client) -> None:
    """Both use the same code, so that all numbers are equal; the service rounds boxes to 3 decimals, scores to 6."""
    for what, data in uploads().items():
        asked = {"score_threshold": 0, "proposals": True}
        served = http.post("/detect", params=asked, files={"image": data}).json()
        found = published.detect(data, score_threshold=0)
        assert found.boxes.astype(float).round(3).tolist() == served["boxes"], what
        assert found.scores.astype(float).round(6).tolist() == served["scores"], what
        assert found.labels == served["labels"]
        assert found.proposals.astype(float).round(3).tolist() == served["proposals"]["boxes"]
        assert [found.width, found.height] == [served["image"]["width"], served["image"]["height"]]
        assert list(found.warnings) == [one["reason"] for one in served["warnings"]]


def check_against_pytorch(published: faster_rcnn.Model, in_pytorch: faster_rcnn.Model, longest: int) -> None:
    """The tolerance is in canvas pixels; `longest` is a canvas's longer side.

    An original that is larger than its canvas has more pixels for each of the canvas's.
    """
    found = 0
    for what, data in uploads().items():
        by_graph, by_pytorch = (each.detect(data, score_threshold=0) for each in (published, in_pytorch))
        larger = max(1.0, max(by_graph.width, by_graph.height) / longest)
        difference = compare(boxes_of(by_pytorch), boxes_of(by_graph), Tolerance(0.1 * larger, 1e-3))  # contract 1.3
        assert not difference.unmatched, (what, difference)
        found += len(by_graph.boxes)
    assert found > 100


def boxes_of(found: faster_rcnn.Detections) -> Boxes:
    return Boxes(found.boxes, found.scores, found.label_indices, 0.0)


@pytest.mark.contract("6.6")
def test_python_and_the_service_give_the_same_answer(folder: Path, published: faster_rcnn.Model, start: Any) -> None:
    server = start(MODEL_STORE=folder / "store", DEFAULT_MODEL="own").ready()
    check_against_the_service(published, server.http)


@pytest.mark.contract("6.6")
def test_a_checkpoint_and_the_published_model_give_the_same_answer(
    published: faster_rcnn.Model, in_pytorch: faster_rcnn.Model
) -> None:
    check_against_pytorch(published, in_pytorch, longest=128)


def test_a_batch_gives_what_each_image_gives_alone(published: faster_rcnn.Model) -> None:
    images = list(uploads().values())
    for alone, together in zip(
        [published.detect(one, 0) for one in images], published.detect_batch(images, 0, batch_size=3), strict=True
    ):
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=0.1)  # contract 1.2, in larger originals
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-4)
        assert together.labels == alone.labels


@pytest.mark.contract("6.6")
def test_evaluation_and_proposals_see_the_image_that_the_service_sees(
    folder: Path, published: faster_rcnn.Model, in_pytorch: faster_rcnn.Model
) -> None:
    """Evaluation decodes the file as the service does, at a part of its size where the service does so."""
    own = faster_rcnn.load_detector(folder)
    for data in uploads().values():
        whole = np.asarray(upright(data, white=WHITE))
        sample = Sample(whole, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), file=data)
        for predict, model in (
            (torch_predictor(own), in_pytorch),
            (onnx_predictor(folder / "store" / "own" / "1"), published),
        ):
            predicted, found = predict(sample), model.detect(data, score_threshold=0)
            np.testing.assert_allclose(predicted.boxes, found.boxes, atol=0.01)
            np.testing.assert_allclose(predicted.proposals, found.proposals, atol=0.01)
        assert prepare_image(own, sample).size.tolist() == [list(whole.shape[:2])]


def test_the_predictors_of_evaluation_give_the_same_boxes_in_original_pixels(folder: Path) -> None:
    """The images have unusual sizes, and the detector finds objects everywhere."""
    in_pytorch = torch_predictor(faster_rcnn.load_detector(folder))
    in_onnx = onnx_predictor(folder / "store" / "own" / "1")
    for height, width in ((301, 517), (200, 100), (1000, 640)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        one, other = in_pytorch(sample), in_onnx(sample)
        assert len(one.boxes) > 5
        assert one.boxes.max() > 0.9 * max(height, width)
        assert (one.boxes[:, 0::2] <= width).all()
        assert (one.boxes[:, 1::2] <= height).all()
        answers = [Boxes(found.boxes, found.scores, found.labels, cut=0.02) for found in (one, other)]
        larger = max(min(height, width) / 64, max(height, width) / 128)  # original pixels for each of the canvas's
        assert compare(*answers, Tolerance(0.1 * larger, 1e-3)).unmatched == 0  # contract 1.3


def test_a_path_an_array_and_a_pillow_image_give_the_same_answer(published: faster_rcnn.Model, tmp_path: Path) -> None:
    image = scene(100, 80)
    file = tmp_path / "image.png"
    image.save(file)
    expected = published.detect(file, 0)
    for form in (str(file), file.read_bytes(), image, np.asarray(image)):
        assert published.detect(form, 0).boxes.tolist() == expected.boxes.tolist()


def test_what_open_model_cannot_use_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    store = folder / "store"
    with pytest.raises(ValueError, match=r"holds the versions 1; name one, such as .*own/1"):
        faster_rcnn.open_model(store / "own")
    with pytest.raises(ValueError, match="is a published model; which, labels and white"):
        faster_rcnn.open_model(store / "own" / "1", which="best")
    with pytest.raises(ValueError, match=r"\d classes without background, labels are for 2"):
        faster_rcnn.open_model(folder, labels=["one", "two"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        faster_rcnn.open_model(tmp_path / "nowhere")
    save_state(tmp_path / NAME, lively("compact"), "rpn", 1)
    with pytest.raises(ValueError, match="has trained only the rpn part"):
        faster_rcnn.open_model(tmp_path)
    with pytest.raises(ValueError, match="needs a list of images; use detect"):
        faster_rcnn.open_model(store / "own" / "1").detect_batch("image.jpg")
