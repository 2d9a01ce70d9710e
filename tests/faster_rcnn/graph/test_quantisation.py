"""The embedded model in int8: nearly the same answers, and still an image's own, whatever is beside it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.graph import publish_int8 as publishing
from faster_rcnn.graph.publish_int8 import TooCoarse, publish_int8
from faster_rcnn.graph.quantisation import quantise
from service.engine.engine import Engine
from service.engine.model import load_model
from service.images.fit import Canvas

FLOAT = Path(__file__).parents[3] / "model_store" / "shapes" / "1"
CANVAS = (288, 384)


def canvas(picture: np.ndarray) -> Canvas:
    pixels = np.asarray(Image.fromarray(picture).resize((372, 280)))
    return Canvas(pixels, CANVAS, 372, 280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "shapes" / "1"
    folder.mkdir(parents=True)
    train = Shapes("train")
    quantise(FLOAT / "model.onnx", folder / "model.onnx", (canvas(train[index].image) for index in range(12)))
    card = json.loads((FLOAT / "model.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def confident(engine: Engine, pictures: list[Canvas]) -> list[list[tuple[int, np.ndarray]]]:
    """Label and box of each image's detections above 0.8."""
    found = []
    for result in engine.run(pictures):
        sure = result.scores > 0.8
        found.append(list(zip(result.labels[sure], result.boxes[sure], strict=True)))
    return found


def test_the_service_takes_it_and_finds_the_same_objects(folder: Path) -> None:
    test = Shapes("test")
    pictures = [canvas(test[index].image) for index in range(10)]
    wanted, found = (confident(Engine(load_model(one)), pictures) for one in (FLOAT, folder))
    objects = [(label, box, there) for one, there in zip(wanted, found, strict=True) for label, box in one]
    assert len(objects) > 20
    hits = [
        any(label == other and np.abs(box - near).max() < 8 for other, near in there) for label, box, there in objects
    ]
    assert np.mean(hits) > 0.9


def test_a_batch_changes_nothing(folder: Path) -> None:
    engine = Engine(load_model(folder))
    test = Shapes("test")
    pictures = [canvas(test[index].image) for index in range(4)]
    for alone, together in zip((engine.run([one])[0] for one in pictures), engine.run(pictures), strict=True):
        np.testing.assert_array_equal(alone.boxes, together.boxes)
        np.testing.assert_array_equal(alone.scores, together.scores)
        np.testing.assert_array_equal(alone.proposals, together.proposals)


def test_the_file_is_a_third_or_less_and_the_first_and_last_convolutions_stay_float(folder: Path) -> None:
    assert (folder / "model.onnx").stat().st_size < (FLOAT / "model.onnx").stat().st_size / 3
    model = onnx.load(folder / "model.onnx")
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    blanking = {one.name for one in model.graph.initializer if (onnx.numpy_helper.to_array(one) == 1).all()}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] not in blanking]
    in_float = [made_by.get(node.input[1]) != "DequantizeLinear" for node in convolutions]
    assert in_float == [True] + [False] * 9 + [True] * 2  # the RPN's scores and deltas
    assert any(node.op_type == "Conv" and node.input[1] in blanking for node in model.graph.node)


def test_what_is_in_int8_already_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8 already"):
        quantise(folder / "model.onnx", tmp_path / "again.onnx", [])


def test_a_version_in_int8_says_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "CALIBRATION_IMAGES", 8)
    monkeypatch.setattr(publishing, "LARGEST_LOSS", 0.05)  # twelve images, and a processor of any kind
    source = tmp_path / "shapes" / "1"
    shutil.copytree(FLOAT, source)
    folder = publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", limit=12)
    card = json.loads((folder / "model.json").read_text())
    assert (folder, card["precision"], card["quantised_from"]) == (source.parent / "2", "int8", 1)
    assert card["metrics"]["shapes/test"]["AP"] > card["metrics"]["shapes/test, float32"]["AP"] - 0.05
    assert "verification" not in card
    assert Engine(load_model(folder)).run([canvas(Shapes("test")[0].image)])
    with pytest.raises(FileExistsError, match="another --version"):
        publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", limit=1)


def test_nothing_is_published_that_finds_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "CALIBRATION_IMAGES", 2)
    monkeypatch.setattr(publishing, "LARGEST_LOSS", -1.0)  # as if any AP were a loss
    source = tmp_path / "shapes" / "1"
    shutil.copytree(FLOAT, source)
    with pytest.raises(TooCoarse, match="falls from"):
        publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", limit=2)
    assert [one.name for one in source.parent.iterdir()] == ["1"]
