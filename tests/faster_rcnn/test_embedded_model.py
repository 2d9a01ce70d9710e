"""The model that comes with the project is as good, as small and as honest as README says."""

import hashlib
import json
from pathlib import Path

import pytest

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.evaluation import evaluate
from faster_rcnn.graph.serving import onnx_predictor

MODEL = Path(__file__).resolve().parents[2] / "model_store" / "shapes" / "1"


@pytest.fixture(scope="module")
def card() -> dict:
    document: dict = json.loads((MODEL / "model.json").read_text())
    return document


def test_it_is_small_and_unchanged(card: dict) -> None:
    graph = (MODEL / "model.onnx").read_bytes()
    assert len(graph) == card["bytes"] <= 15_000_000
    assert hashlib.sha256(graph).hexdigest() == card["sha256"]


def test_it_was_measured_on_500_pictures_that_training_never_saw(card: dict) -> None:
    metrics = card["metrics"]["shapes/test"]
    assert metrics["pictures"] == 500
    assert metrics["AP50"] >= 0.97
    assert metrics["AP"] >= 0.70
    assert card["training"]["train_split"] == "train"


def test_it_still_answers_so_through_the_services_code(card: dict) -> None:
    """On pictures of another seed, which nobody has ever measured: no number of the card is looked up."""
    metrics = evaluate(Shapes("test", 80, seed=2026), onnx_predictor(MODEL))
    assert metrics["AP50"] > 0.95
    assert metrics["AP"] > 0.68
