"""The threshold of a published version: chosen with its own graph, so that the service returns what the model finds."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.limits import Limits, with_detections
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.evaluation import torch_predictor
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.publish import Measurement, publish, write_card
from faster_rcnn.graph.served_threshold import Validation, on_validation, without_data
from faster_rcnn.graph.version_graphs import GraphOptions
from service.engine.model import load_model
from tests.faster_rcnn.lively import lively

EMBEDDED = Path(__file__).resolve().parents[3] / "model_store" / "shapes" / "1"


@pytest.fixture
def timid(tmp_path: Path) -> Path:
    """The embedded model with every score multiplied by 0.41, as after a training that was too short."""
    folder = tmp_path / "timid" / "1"
    folder.mkdir(parents=True)
    graph = onnx.load(EMBEDDED / "model.onnx")
    for node in graph.graph.node:
        node.output[:] = ["sure" if name == "scores" else name for name in node.output]
        node.input[:] = ["sure" if name == "scores" else name for name in node.input]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0.41, np.float32), "timidity"))
    graph.graph.node.append(onnx.helper.make_node("Mul", ["sure", "timidity"], ["scores"]))
    onnx.save(graph, folder / "model.onnx")
    card = json.loads((EMBEDDED / "model.json").read_text()) | {"name": "timid"}
    write_card(folder, card | {"sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()})
    return folder


@pytest.mark.contract("4.7")
def test_a_model_whose_best_score_is_0_41_gets_a_threshold_at_which_it_returns_its_objects(timid: Path) -> None:
    predict = onnx_predictor(timid)
    images = Shapes("val", length=6)
    threshold = on_validation(Validation(images, "shapes/val"), predict, None, Limits(100, 100, 0.005))
    found = [predict(images[index]).scores for index in range(6)]
    objects = sum(len(images[index].labels) for index in range(6))
    assert np.concatenate(found).max() <= 0.41
    assert sum((scores >= 0.5).sum() for scores in found) == 0  # nothing at the threshold that used to be fixed
    assert 0.1 < threshold.value < 0.41
    returned = sum(int((scores >= threshold.value).sum()) for scores in found)
    assert returned == threshold.record["detections"] >= 0.8 * objects
    assert threshold.record["F1"] > 0.8
    card = json.loads((timid / "model.json").read_text())
    write_card(timid, card | threshold.card())
    assert load_model(timid).card.score_threshold == threshold.value


@pytest.mark.contract("4.7")
def test_a_threshold_named_by_a_person_that_returns_nothing_causes_a_warning_with_a_better_one(timid: Path) -> None:
    threshold = on_validation(Validation(Shapes("val"), "shapes/val", 6), onnx_predictor(timid), 0.5, None)
    assert (threshold.value, threshold.record["rule"]) == (0.5, "given")
    [chosen, warning] = threshold.report().splitlines()
    assert chosen.startswith("score threshold 0.5: given; on shapes/val (6 images, ")
    assert warning.startswith("warning: at a score threshold of 0.5 the model returns nothing: 0 of the ")
    assert f"{threshold.record['best']['score_threshold']:g} would give an F1 of " in warning


@pytest.mark.contract("4.7")
def test_without_data_the_threshold_is_the_named_one_or_is_said_to_be_assumed() -> None:
    assert without_data(0.3).card() == {"score_threshold": 0.3, "score_threshold_choice": {"rule": "given"}}
    assert without_data(None).report() == (
        "score threshold 0.5: assumed, because there is no validation data; name --data to choose it, or set "
        "--score-threshold"
    )


class OwnFindings:
    """Images whose objects are the best ten detections of a detector, which therefore finds all of them."""

    labels = Shapes.labels

    def __init__(self, detector: FasterRCNN, number: int) -> None:
        predict, images = torch_predictor(detector), Shapes("val")
        self.samples = []
        for index in range(number):
            found = predict(images[index])
            assert len(found.scores) > 10
            self.samples.append(replace(images[index], boxes=found.boxes[:10], labels=found.labels[:10]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def size(self, index: int) -> tuple[int, int]:
        height, width = self.samples[index].image.shape[:2]
        return height, width

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.contract("1.6", "4.7")
def test_the_graph_keeps_the_number_of_detections_and_publication_says_which_objects_that_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = lively("compact", resize=ResizeRule(96, 96))
    data: Dataset = OwnFindings(small, 3)
    small.config = with_detections(small.config, 7)
    images = [data[index].image for index in range(3)]
    measurement, options = Measurement(data, "own"), GraphOptions(provider="cpu")
    folder = publish(small, tmp_path, "few", 1, training={}, images=images, measurement=measurement, options=options)
    card = json.loads((folder / "model.json").read_text())
    predict = onnx_predictor(folder)
    assert [len(predict(data[index]).scores) for index in range(3)] == [7, 7, 7]
    # The graph tells what PyTorch tells: what the limit left out.
    in_pytorch = torch_predictor(small)
    for index in range(3):
        assert predict(data[index]).left_out == pytest.approx(in_pytorch(data[index]).left_out, abs=1e-3)
        assert 0 < predict(data[index]).left_out <= predict(data[index]).scores.min()
    # The seven best of the ten objects of each image are found, and nothing else: precision 1, recall 0.7,
    # F1 = 2 · 21 / (21 + 30) = 0.8235
    choice = card["score_threshold_choice"]
    assert (choice["objects"], choice["detections"], choice["objects_found"], choice["F1"]) == (30, 21, 21, 0.8235)
    assert card["score_threshold"] < min(predict(data[index]).scores.min() for index in range(3))
    out = capsys.readouterr().out
    assert "3 of 3 images of own have more objects (up to 10) than the 7 detections" in out
    assert "in 3 of 3 images of own the model's limits on detections and candidates may have left out" in out
    assert "at least 9 of 30 objects cannot be found; train or export with --detections 10" in out
