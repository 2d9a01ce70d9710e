import json
import shutil

import pytest

from service.engine.model import ModelRefusedError, load_model
from tests.service import graphs


def test_the_embedded_model_loads(embedded):
    model = load_model(embedded)
    assert model.id == ("shapes", 1)
    assert len(model.card.labels) == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"sha256": "short"}, "sha256"),
        ({"name": "other"}, "folder is plain/1"),
        ({"version": 7}, "folder is plain/1"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a"]}, "twice"),
        ({"canvases": []}, "canvases"),
        ({"canvases": [[64, 96]]}, "no canvas holds 96 x 64"),
        ({"canvases": [[96, 96]], "resize": {"min_size": 200, "max_size": 97}}, "no canvas holds 97 x 97"),
        ({"resize": {"min_size": 0, "max_size": 96}}, "resize.min_size"),
        ({"resize": {"min_size": 64, "max_size": 96, "antialias": "perhaps"}}, "resize.antialias"),
        ({"score_threshold": 2}, "score_threshold"),
    ],
)
@pytest.mark.contract("4.1", "4.3")
def test_a_version_with_a_wrong_card_is_refused_with_the_reason(tmp_path, change, reason):
    folder = graphs.publish(tmp_path, card=change)
    with pytest.raises(ModelRefusedError, match=reason):
        load_model(folder)


@pytest.mark.parametrize("missing", ["model.json", "model.onnx"])
def test_a_missing_file_is_named(tmp_path, missing):
    folder = graphs.publish(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ModelRefusedError, match=missing):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_card_is_refused(tmp_path, text):
    folder = graphs.publish(tmp_path)
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelRefusedError, match=r"model\.json"):
        load_model(folder)


@pytest.mark.contract("4.1")
def test_unknown_members_of_the_card_are_kept(tmp_path):
    folder = graphs.publish(tmp_path, card={"tools": {"torch": "2.15.0"}})
    assert load_model(folder).card.model_dump()["tools"] == {"torch": "2.15.0"}


def test_a_model_can_be_copied_to_another_store(embedded, tmp_path):
    copy = tmp_path / "elsewhere" / "shapes" / "1"
    shutil.copytree(embedded, copy)
    assert load_model(copy).card.sha256 == json.loads((embedded / "model.json").read_text())["sha256"]


def test_images_are_resized_with_antialiasing_by_default(tmp_path):
    assert load_model(graphs.publish(tmp_path, version=1)).card.geometry.antialias
    without = {"resize": {"min_size": 64, "max_size": 96, "antialias": False}}
    assert not load_model(graphs.publish(tmp_path, version=2, card=without)).card.geometry.antialias
