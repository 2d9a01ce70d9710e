"""The graphs of a version: each verified and described in the card, with the weights that they share stored once."""

import copy
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.graph import version_graphs
from faster_rcnn.graph.comparison import Difference, Disagreement
from faster_rcnn.graph.publish import Measurement, publish
from faster_rcnn.graph.shared_weights import share_weights
from faster_rcnn.graph.verification import Verification, Verifier
from faster_rcnn.graph.version_graphs import GraphOptions, others_for, write_graphs, write_other
from service.engine.card import Card
from service.engine.engine import Engine
from service.engine.model import Model
from service.engine.providers import CPU, CUDA
from service.engine.shared_weights import with_weights
from service.images.fit import Canvas

CANVAS = (96, 96)
IMAGE = Shapes("test")[0].image[:96, :96]


@pytest.fixture(scope="module")
def detector(compact: tuple[FasterRCNN, Path]) -> FasterRCNN:
    small = copy.copy(compact[0])
    small.resize = ResizeRule(96, 96)  # small images; the graph takes any size
    return small


@pytest.fixture(scope="module")
def version(
    compact: tuple[FasterRCNN, Path], detector: FasterRCNN, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder with all the graphs of a detector, and the card's entries on the others."""
    folder = tmp_path_factory.mktemp("version")
    shutil.copy(compact[1], folder / "model.onnx")
    verifier = Verifier(detector, [CANVAS], [IMAGE])
    others = others_for(GraphOptions(cuda_fp16=True))
    return folder, {other.name: write_other(folder, detector, verifier, other) for other in others}


@pytest.mark.contract("4.8")
def test_every_graph_is_described_and_verified(version: tuple[Path, dict[str, Any]]) -> None:
    folder, entries = version
    assert {name: (entry["file"], entry["precision"]) for name, entry in entries.items()} == {
        "cuda": ("model.cuda.onnx", "fp32"),
        "cuda-fp16": ("model.cuda.fp16.onnx", "fp16"),
    }
    for entry in entries.values():
        data = (folder / entry["file"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert entry["verification"]["boxes_compared"] > 100
    assert json.loads(json.dumps(entries)) == entries


@pytest.mark.contract("4.8")
def test_a_graph_in_the_same_precision_adds_less_than_a_tenth(version: tuple[Path, dict[str, Any]]) -> None:
    folder, entries = version
    assert entries["cuda"]["bytes"] < (folder / "model.onnx").stat().st_size / 10
    assert entries["cuda-fp16"]["bytes"] < (folder / "model.onnx").stat().st_size * 0.6
    stored = onnx.load(folder / "model.cuda.onnx", load_external_data=False).graph.initializer
    assert sum(one.data_location == TensorProto.EXTERNAL for one in stored) > 10


@pytest.mark.contract("1.3", "4.8")
def test_the_service_gets_the_same_answer_from_every_graph(version: tuple[Path, dict[str, Any]]) -> None:
    """On the CPU, which can run them all."""
    folder, entries = version
    card = Card.model_validate(
        {
            "name": "toy", "version": 1, "labels": list(Shapes.labels), "canvases": [CANVAS], "score_threshold": 0.5,
            "resize": {"min_size": 96, "max_size": 96},
        }
        | {"graphs": entries, "sha256": "0" * 64}
    )  # fmt: skip
    model = Model(card, (folder / "model.onnx").read_bytes(), folder)
    portable = Model(card.model_copy(update={"graphs": {}}), model.graph)
    canvas = Canvas(np.ascontiguousarray(IMAGE), CANVAS, 96, 96)
    expected = Engine(portable).run([canvas])[0]
    assert len(expected.scores) > 10
    found = Engine(model.with_only("cuda")).run([canvas])[0]
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)
    half = Engine(model.with_only("cuda-fp16")).run([canvas])[0]
    assert half.scores[0] == pytest.approx(expected.scores[0], abs=0.05)


def nothing_compared(*_: object, **__: object) -> Verification:
    return Verification(1, 1, 1, Difference(), Difference())


@pytest.mark.parametrize(
    ("options", "there", "expected"),
    [
        (GraphOptions(), CPU, [("model.onnx", CPU), ("model.cuda.onnx", CPU)]),
        (GraphOptions(), CUDA, [("model.onnx", CPU), ("model.cuda.onnx", CPU), ("model.cuda.onnx", CUDA)]),
        (GraphOptions("fp16"), CPU, [("model.onnx", CPU), ("model.cuda.onnx", CPU)]),
        (GraphOptions(provider="cpu"), CUDA, [("model.onnx", CPU)]),
    ],
)
@pytest.mark.contract("4.8")
def test_a_graph_is_verified_on_cuda_too_if_it_runs_there(
    options: GraphOptions,
    there: str,
    expected: list[tuple[str, str]],
    version: tuple[Path, dict[str, Any]],
    detector: FasterRCNN,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[str, str]] = []

    def verify(_: Verifier, path: Path, precision: str, provider: str, run_on: str) -> Verification:
        assert (precision, provider) == (options.precision, options.provider)
        ran.append((path.name, run_on))
        return nothing_compared()

    portable = (version[0] / "model.onnx").read_bytes()
    monkeypatch.setattr(version_graphs, "export_onnx", lambda _, path, *how, **more: path.write_bytes(portable))
    monkeypatch.setattr(version_graphs, "pick_provider", lambda: there)
    monkeypatch.setattr(Verifier, "verify", verify)
    card = write_graphs(tmp_path, detector, Verifier(detector, [CANVAS], [IMAGE]), options)
    assert ran == expected
    on_cuda = [file for file, run_on in ran if run_on == CUDA]
    assert ["verification_on_cuda" in entry for entry in card.get("graphs", {}).values()] == [bool(on_cuda)] * (
        options.provider == "any"
    )
    assert "verification_on_cuda" not in card  # CUDA would not run model.onnx


def test_a_graph_that_disagrees_is_named(detector: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(_: Verifier, path: Path, *how: object) -> Verification:
        if path.name == "model.cuda.onnx":
            raise Disagreement("boxes differ")
        return nothing_compared()

    monkeypatch.setattr(version_graphs, "export_onnx", lambda _, path, *how, **more: path.write_bytes(b""))
    monkeypatch.setattr(Verifier, "verify", disagree)
    with pytest.raises(Disagreement, match=r"^model\.cuda\.onnx on CPUExecutionProvider: boxes differ"):
        write_graphs(tmp_path, detector, Verifier(detector, [CANVAS], [IMAGE]), GraphOptions())


def test_a_graph_in_another_precision_has_metrics_of_its_own(
    version: tuple[Path, dict[str, Any]], detector: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portable = (version[0] / "model.onnx").read_bytes()
    monkeypatch.setattr(version_graphs, "export_onnx", lambda _, path, *how, **more: path.write_bytes(portable))
    monkeypatch.setattr(Verifier, "verify", nothing_compared)
    measurement = Measurement(Shapes("test", 2), "shapes/test", example=False)
    options = GraphOptions(cuda_fp16=True)
    folder = publish(detector, tmp_path, "toy", 1, training={}, measurement=measurement, options=options)
    card = json.loads((folder / "model.json").read_text())
    assert card["graphs"]["cuda-fp16"]["metrics"] == card["metrics"]  # of the same graph here
    assert "metrics" not in card["graphs"]["cuda"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"provider": "cpu", "cuda_fp16": True}, "--provider cpu leaves such graphs out"),
        ({"precision": "fp16", "cuda_fp16": True}, "leave out --cuda-fp16"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        GraphOptions(**options)


def test_the_options_are_those_of_the_graphs() -> None:
    assert asdict(GraphOptions()) == {"precision": "fp32", "provider": "any", "cuda_fp16": False}


# --- sharing ---------------------------------------------------------------------------------------------------------


def model_with(**weights: np.ndarray) -> onnx.ModelProto:
    """A model whose output is the sum of the sums of its weights."""
    sums = [helper.make_node("ReduceSum", [name], [f"sum_{name}"], keepdims=0) for name in weights]
    total = helper.make_node("Sum", [f"sum_{name}" for name in weights], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([*sums, total], "sums", [], [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_equal_weights_are_stored_once_whatever_their_names_and_shapes(tmp_path: Path) -> None:
    large, other, small = (np.arange(size, dtype=np.float32) for size in (100, 64, 63))  # 400, 256 and 252 bytes
    theirs = model_with(a=large, b=other, c=small)
    onnx.save(theirs, tmp_path / "model.onnx")
    mine = model_with(
        renamed=large.reshape(4, 25),
        again=large,  # a weight is referred to once
        other=other,
        as_bits=other.view(np.int32).astype(np.float32) + 1,
        changed=large + 1,
        small=small,
    )
    onnx.save(copy.deepcopy(mine), tmp_path / "other.onnx")
    before = (tmp_path / "other.onnx").stat().st_size
    share_weights(tmp_path / "other.onnx", tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "other.onnx", load_external_data=False)
    external = [one.name for one in written.graph.initializer if one.data_location == TensorProto.EXTERNAL]
    assert external == ["renamed", "other"]
    assert (tmp_path / "other.onnx").stat().st_size < before - 400
    shared, portable = ((tmp_path / name).read_bytes() for name in ("other.onnx", "model.onnx"))
    assert onnx.load_model_from_string(with_weights(shared, portable)) == mine
    assert onnx.load(tmp_path / "other.onnx") is not None  # onnx, too, finds the values


def test_weights_of_another_type_are_not_shared_although_their_bytes_are_equal(tmp_path: Path) -> None:
    ones = np.ones(100, np.float32)
    onnx.save(model_with(a=ones), tmp_path / "model.onnx")
    mine = model_with(a=ones)
    mine.graph.initializer[0].data_type = TensorProto.INT32
    onnx.save(mine, tmp_path / "other.onnx")
    share_weights(tmp_path / "other.onnx", tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "other.onnx", load_external_data=False) == mine
