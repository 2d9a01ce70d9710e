"""A published model as a predictor."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.graph.onnx_predictor import canvas_of, onnx_predictor
from service.images.fit import Geometry

MODEL = Path(__file__).parents[3] / "model_store" / "shapes" / "1"


def test_the_predictor_finds_the_objects_of_an_image() -> None:
    sample = Shapes("test")[0]
    found = onnx_predictor(MODEL)(sample)
    sure = found.scores > 0.5
    assert sorted(found.labels[sure]) == sorted(sample.labels)


def test_a_model_that_the_service_would_refuse_is_an_error_with_its_folder(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "shapes" / "1")
    (tmp_path / "shapes" / "1" / "model.onnx").write_bytes(b"not the graph of the card")
    with pytest.raises(ValueError, match=r"shapes/1: model.onnx is cut short or damaged .*publish the model again"):
        onnx_predictor(tmp_path / "shapes" / "1")


def test_an_image_that_needs_no_resizing_keeps_its_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    sample = Sample(image, np.zeros((0, 4)), np.zeros(0))
    canvas = canvas_of(sample, Geometry(((96, 128),), 96, 128, True))
    np.testing.assert_array_equal(canvas.pixels, image)
