"""The names that `import faster_rcnn` offers."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import faster_rcnn
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.checkpoint import NAME, save_state
from tests.faster_rcnn.lively import lively


def test_every_public_name_can_be_imported() -> None:
    for name in faster_rcnn.__all__:
        assert getattr(faster_rcnn, name) is not None
        assert name in dir(faster_rcnn)
    assert faster_rcnn.__version__ == version("faster-rcnn-service")


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'faster_rcnn' has no attribute 'YOLO'"):
        faster_rcnn.YOLO  # noqa: B018  the access itself raises


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, faster_rcnn; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(faster_rcnn.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


def test_the_example_in_the_docstring_detects_objects(tmp_path: Path) -> None:
    save_state(tmp_path / NAME, lively("compact"), "joint", 1)
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (144, 200, 3), np.uint8)).save(file)
    found = faster_rcnn.open_model(tmp_path).detect(file, score_threshold=0)
    assert len(found.boxes) == len(found.scores) == len(found.labels) > 0
    assert set(found.labels) <= set(Shapes.labels)
    assert found.boxes.max() <= 200  # in pixels of the original, although it is resized to 288 × 400


def test_the_detector_itself_resizes_too(tmp_path: Path) -> None:
    """The shorter side becomes 288, so 144 × 200 pixels become 288 × 400: twice the size."""
    save_state(tmp_path / NAME, lively("compact"), "joint", 1)
    rgb = np.random.default_rng(0).integers(0, 256, (144, 200, 3), np.uint8)
    found = faster_rcnn.open_model(tmp_path).detect(rgb, score_threshold=0)
    detector = faster_rcnn.load_detector(tmp_path, "last")
    output = detector.alone(rgb)
    boxes = output.boxes[: output.num_detections]
    np.testing.assert_allclose(boxes, found.boxes, atol=0.01)
    resized, scale_x, scale_y = faster_rcnn.resize_image(rgb, detector.resize)
    assert (scale_x, scale_y) == (2.0, 2.0)
    on_resized = detector.alone_resized(resized)
    np.testing.assert_allclose(on_resized.boxes[: len(boxes)] / 2, boxes, atol=0.01)
