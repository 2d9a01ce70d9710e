"""A graph that several test files use."""

from pathlib import Path

import pytest

from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.graph.export import export_onnx
from tests.faster_rcnn.lively import lively


@pytest.fixture(scope="session")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, Path]:
    """An untrained detector with the compact backbone, and its graph."""
    detector = lively("compact")
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(detector, path)
    return detector, path
