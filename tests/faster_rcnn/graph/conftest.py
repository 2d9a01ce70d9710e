"""A graph that several files use, and one thread for PyTorch.

A second thread gains little, because the detectors here are small. On a busy machine it costs many times the work,
because the threads of one operation wait for each other.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.graph.export import export_onnx
from tests.faster_rcnn.lively import lively


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compact(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, Path]:
    """An untrained detector with the compact backbone, and its graph."""
    detector = lively("compact")
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(detector, path)
    return detector, path
