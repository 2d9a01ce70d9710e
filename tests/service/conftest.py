from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from service.engine.engine import Engine
from service.engine.model import load_model
from tests.service import graphs

STORE = Path(os.environ.get("MODEL_STORE", Path(__file__).parents[2] / "model_store"))


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the embedded model, which is part of the project."""
    return STORE / "shapes" / "1"


@pytest.fixture(scope="session")
def embedded_engine(embedded: Path) -> Engine:
    return Engine(load_model(embedded))


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Engine]:
    """Makes engines for the models of `graphs`."""
    made = 0

    def make(**kind: object) -> Engine:
        nonlocal made
        made += 1
        return Engine(load_model(graphs.publish(tmp_path / str(made), **kind)))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encodes an image as the bytes of a file."""

    def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
        out = io.BytesIO()
        image.save(out, format, **options)
        return out.getvalue()

    return encode
