"""The embedded model in int8 returns nearly the same answers, and each answer depends on its image alone."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.graph.quantisation import quantise
from service.engine.engine import Engine
from service.engine.model import load_model
from service.images.fit import Canvas

FLOAT = Path(__file__).parents[3] / "model_store" / "shapes" / "1"
CANVAS = (288, 384)


def canvas(image: np.ndarray) -> Canvas:
    pixels = np.asarray(Image.fromarray(image).resize((372, 280)))
    return Canvas(pixels, CANVAS, 372, 280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "shapes" / "1"
    folder.mkdir(parents=True)
    train = Shapes("train")
    level = logging.root.level
    quantise(FLOAT / "model.onnx", folder / "model.onnx", (canvas(train[index].image) for index in range(12)))
    assert logging.root.level == level  # although the quantiser's warnings were hidden
    card = json.loads((FLOAT / "model.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def confident(engine: Engine, canvases: list[Canvas]) -> list[list[tuple[int, np.ndarray]]]:
    """Label and box of each image's detections above 0.8."""
    found = []
    for result in engine.run(canvases):
        sure = result.scores > 0.8
        found.append(list(zip(result.labels[sure], result.boxes[sure], strict=True)))
    return found


def test_the_service_loads_the_int8_model_and_finds_the_same_objects(folder: Path) -> None:
    test = Shapes("test")
    canvases = [canvas(test[index].image) for index in range(10)]
    wanted, found = (confident(Engine(load_model(one)), canvases) for one in (FLOAT, folder))
    objects = [(label, box, there) for one, there in zip(wanted, found, strict=True) for label, box in one]
    assert len(objects) > 20
    hits = [
        any(label == other and np.abs(box - near).max() < 8 for other, near in there) for label, box, there in objects
    ]
    assert np.mean(hits) > 0.9


def test_the_answer_for_an_image_is_the_same_alone_and_in_a_batch(folder: Path) -> None:
    engine = Engine(load_model(folder))
    test = Shapes("test")
    canvases = [canvas(test[index].image) for index in range(4)]
    for alone, together in zip((engine.run([one])[0] for one in canvases), engine.run(canvases), strict=True):
        np.testing.assert_array_equal(alone.boxes, together.boxes)
        np.testing.assert_array_equal(alone.scores, together.scores)
        np.testing.assert_array_equal(alone.proposals, together.proposals)


def test_the_file_is_at_most_a_third_and_the_first_and_last_convolutions_stay_float(folder: Path) -> None:
    assert (folder / "model.onnx").stat().st_size < (FLOAT / "model.onnx").stat().st_size / 3
    model = onnx.load(folder / "model.onnx")
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    blanking = {one.name for one in model.graph.initializer if (onnx.numpy_helper.to_array(one) == 1).all()}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] not in blanking]
    in_float = [made_by.get(node.input[1]) != "DequantizeLinear" for node in convolutions]
    assert in_float == [True] + [False] * 9 + [True] * 2  # the RPN's scores and deltas
    assert any(node.op_type == "Conv" and node.input[1] in blanking for node in model.graph.node)


def test_a_graph_that_is_already_in_int8_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already in int8"):
        quantise(folder / "model.onnx", tmp_path / "again.onnx", [])


def test_a_graph_without_a_convolution_is_refused(tmp_path: Path) -> None:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    relu = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(relu), tmp_path / "relu.onnx")
    with pytest.raises(ValueError, match="the graph has no convolution"):
        quantise(tmp_path / "relu.onnx", tmp_path / "out.onnx", [])
