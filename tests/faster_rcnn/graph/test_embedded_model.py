"""The models that come with the project are as good and as small as their cards and the README say."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.evaluation import evaluate
from faster_rcnn.graph.onnx_predictor import canvas_of, onnx_predictor
from service.engine.engine import Engine
from service.engine.model import load_model
from service.engine.providers import CPU, CUDA

STORE = Path(__file__).resolve().parents[3] / "model_store"
MODEL = STORE / "shapes" / "1"
BCCD = STORE / "bccd" / "1"
VERSIONS = sorted(path.parent for path in STORE.glob("*/*/model.json"))


@pytest.fixture(scope="module")
def card() -> dict:
    document: dict = json.loads((MODEL / "model.json").read_text())
    return document


@pytest.mark.parametrize("version", VERSIONS, ids=[f"{path.parent.name}/{path.name}" for path in VERSIONS])
def test_every_published_version_is_small_unchanged_and_verified(version: Path) -> None:
    card = json.loads((version / "model.json").read_text())
    graph = (version / "model.onnx").read_bytes()
    assert len(graph) == card["bytes"] <= 15_000_000
    assert hashlib.sha256(graph).hexdigest() == card["sha256"]
    assert card["verification"]["to_alone"]["unmatched"] == 0
    for entry in card.get("graphs", {}).values():
        other = (version / entry["file"]).read_bytes()
        assert (len(other), hashlib.sha256(other).hexdigest()) == (entry["bytes"], entry["sha256"])
        verification = entry["verification"]
        assert verification["boxes_compared"] > 10_000
        assert verification["to_pytorch"]["unmatched"] == verification["to_alone"]["unmatched"] == 0


@pytest.mark.contract("4.8")
def test_the_graph_for_cuda_gives_the_same_answer_and_adds_less_than_a_hundredth() -> None:
    """Both run on the CPU. The older `model.onnx` has no output `left_out`."""
    model = load_model(MODEL)
    assert model.card.graphs["cuda"].bytes < len(model.graph) / 100
    assert model.graph_for(CUDA) == model.with_only("cuda").graph != model.graph
    canvas = canvas_of(Shapes("test")[1], model.card.geometry)
    found, expected = (Engine(one, CPU).run([canvas])[0] for one in (model.with_only("cuda"), model))
    assert len(expected.scores) > 5
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_the_model_was_measured_on_500_images_that_it_was_not_trained_on(card: dict) -> None:
    metrics = card["metrics"]["shapes/test"]
    assert metrics["pictures"] == 500
    assert metrics["AP50"] >= 0.97
    assert metrics["AP"] >= 0.70
    assert card["training"]["train_split"] == "train"


def test_the_model_is_as_accurate_through_the_services_own_code(card: dict) -> None:
    """Measured on images of another seed, so nothing is read from the card."""
    metrics = evaluate(Shapes("test", 80, seed=2026), onnx_predictor(MODEL))
    assert metrics["AP50"] > 0.95
    assert metrics["AP"] > 0.68


def test_the_blood_cell_model_is_as_accurate_as_its_card_says() -> None:
    folder = os.environ.get("REAL_DATA_DIR")
    if not folder:
        pytest.skip("REAL_DATA_DIR is not set: no real photographs to measure on")
    measured = json.loads((BCCD / "model.json").read_text())["metrics"]["voc:bccd/val"]
    dataset = open_dataset(f"voc:{folder}/bccd", "val", skip_bad_boxes=True)
    metrics = evaluate(dataset, onnx_predictor(BCCD))
    assert metrics["VOC_mAP"] == pytest.approx(measured["VOC_mAP"], abs=0.002)
    assert metrics["VOC_mAP"] >= 0.85
    assert min(metrics["VOC_AP_by_class"].values()) > 0.75
