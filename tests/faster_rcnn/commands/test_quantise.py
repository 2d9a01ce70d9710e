"""`faster-rcnn quantise`: what it refuses before any data is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faster_rcnn.commands.conftest import Done

MODEL = Path(__file__).resolve().parents[3] / "model_store" / "shapes" / "1"


@pytest.mark.parametrize("name", ["quantise", "quantize"])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((MODEL,), "--data is missing; name annotated images"),
        (("nowhere/1", "--data", "shapes"), "nowhere/1 is not a published model; name <store>/<name>/<version>"),
        ((MODEL.parent, "--data", "shapes"), "is not a published model; name <store>/<name>/<version>"),
        ((MODEL, "--data", "coco:nowhere"), "nowhere"),
        ((MODEL, "--seeds", "3"), "unknown option --seeds; did you mean --seed?"),
    ],
)
def test_a_mistake_prints_one_line(
    run: Callable[..., Done], name: str, options: tuple[object, ...], complaint: str
) -> None:
    done = run(name, *options)
    assert complaint in done.refusal
    assert done.refusal.startswith("faster-rcnn quantise: ")
