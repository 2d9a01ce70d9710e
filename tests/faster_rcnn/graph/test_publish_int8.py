"""An int8 copy of a published model, measured against its source."""

import json
import shutil
from pathlib import Path

import pytest

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.graph import publish_int8 as publishing
from faster_rcnn.graph.onnx_predictor import canvas_of
from faster_rcnn.graph.publish_int8 import TooCoarse, publish_int8
from faster_rcnn.graph.served_threshold import Validation
from service.engine.engine import Engine
from service.engine.model import load_model

FLOAT = Path(__file__).parents[3] / "model_store" / "shapes" / "1"


def test_the_card_of_an_int8_version_says_how_much_ap_it_loses_and_how_its_threshold_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "CALIBRATION_IMAGES", 8)
    monkeypatch.setattr(publishing, "LARGEST_LOSS", 0.05)  # on twelve images, and on any processor
    source = tmp_path / "shapes" / "1"
    shutil.copytree(FLOAT, source)
    folder = publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", limit=12)
    card = json.loads((folder / "model.json").read_text())
    assert (folder, card["precision"], card["quantised_from"]) == (source.parent / "2", "int8", 1)
    assert card["metrics"]["shapes/test"]["AP"] > card["metrics"]["shapes/test, float32"]["AP"] - 0.05
    assert "verification" not in card
    choice = card["score_threshold_choice"]  # the source has none, like every model that was published before
    assert (choice["rule"], choice["data"], choice["images"]) == ("highest F1 at IoU 0.5", "shapes/test", 12)
    assert 0.05 < card["score_threshold"] < 0.95
    assert choice["F1"] > 0.8
    assert "score threshold" in capsys.readouterr().out
    model = load_model(folder)
    assert Engine(model).run([canvas_of(Shapes("test")[0], model.card.geometry)])
    with pytest.raises(FileExistsError, match="already exists; choose another --version"):
        publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", limit=1)


def test_a_threshold_that_a_person_named_is_kept_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "quantise", lambda source, out, images: shutil.copy(source, out))
    source = tmp_path / "shapes" / "1"
    shutil.copytree(FLOAT, source)
    card = json.loads((source / "model.json").read_text())
    card |= {"score_threshold": 0.3, "score_threshold_choice": {"rule": "given"}}
    card["graphs"] = {"cuda": {"file": "model.cuda.onnx", "sha256": "0" * 64, "bytes": 1}}
    (source / "model.json").write_text(json.dumps(card))
    validation = Validation(Shapes("val"), "shapes/val", 3)
    folder = publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", 2, validation)
    card = json.loads((folder / "model.json").read_text())
    choice = card["score_threshold_choice"]
    assert (card["score_threshold"], choice["rule"]) == (0.3, "given")
    assert (choice["data"], choice["images"]) == ("shapes/val", 3)
    assert "graphs" not in card  # those of the source are not in int8


def test_an_int8_model_that_loses_too_much_ap_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "CALIBRATION_IMAGES", 2)
    monkeypatch.setattr(publishing, "LARGEST_LOSS", -1.0)  # so every AP is too low
    source = tmp_path / "shapes" / "1"
    shutil.copytree(FLOAT, source)
    with pytest.raises(TooCoarse, match="falls from"):
        publish_int8(source, 2, Shapes("train"), Shapes("test"), "shapes/test", limit=2)
    assert [one.name for one in source.parent.iterdir()] == ["1"]
