"""The models that come with the project are as good and as small as their cards and the README say."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.evaluation import evaluate
from faster_rcnn.graph.onnx_predictor import onnx_predictor

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
