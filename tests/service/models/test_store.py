import json
import os
import shutil
from pathlib import Path

import pytest

from service.engine.model import ModelRefusedError, load_model
from service.models.store import default_name, directories
from tests.service import graphs


def test_the_embedded_model_loads(embedded):
    model = load_model(embedded)
    assert model.id == ("shapes", 1)
    assert len(model.card.labels) == 6


def test_every_version_is_found_and_unfinished_ones_are_not(tmp_path):
    for name, version in (("a", 1), ("a", 2), ("b", 1)):
        graphs.publish(tmp_path, name, version)
    (tmp_path / "a" / ".3.partial").mkdir()
    (tmp_path / ".new" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("not a model")
    found = [f"{folder.parent.name}/{folder.name}" for folder in directories(tmp_path).versions]
    assert found == ["a/1", "a/2", "b/1"]


def test_a_folder_that_cannot_be_listed_does_not_hide_the_others(tmp_path, monkeypatch):
    graphs.publish(tmp_path, "a", 1)
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def as_another_user(folder):
        if folder.name == "lost+found":
            raise PermissionError
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", as_another_user)
    assert directories(tmp_path) == ([tmp_path / "a" / "1"], [tmp_path / "lost+found"])


def test_a_link_to_where_one_may_not_look_does_not_hide_the_others(tmp_path, monkeypatch):
    graphs.publish(tmp_path, "a", 1)
    (tmp_path / "linked").mkdir()
    (tmp_path / "a" / "2").mkdir()
    stat = os.stat

    def as_another_user(path, *arguments, **options):
        if str(path).endswith(("linked", "2")):
            raise PermissionError
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", as_another_user)
    assert directories(tmp_path) == ([tmp_path / "a" / "1"], [])


def test_a_store_may_prefer_a_model(tmp_path):
    assert default_name(tmp_path) is None
    (tmp_path / "default").write_text("shapes\n")
    assert default_name(tmp_path) == "shapes"
    (tmp_path / "default").write_text("\n")
    assert default_name(tmp_path) is None


def test_a_store_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ModelRefusedError, match="MODEL_STORE"):
        directories(tmp_path / "nowhere")


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
def test_a_card_that_does_not_fit_is_refused_with_the_reason(tmp_path, change, reason):
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


def test_what_the_card_says_beyond_the_contract_is_kept(tmp_path):
    folder = graphs.publish(tmp_path, card={"tools": {"torch": "2.15.0"}})
    assert load_model(folder).card.model_dump()["tools"] == {"torch": "2.15.0"}


def test_a_model_can_be_copied_to_another_store(embedded, tmp_path):
    copy = tmp_path / "elsewhere" / "shapes" / "1"
    shutil.copytree(embedded, copy)
    assert load_model(copy).card.sha256 == json.loads((embedded / "model.json").read_text())["sha256"]


def test_a_card_that_does_not_speak_of_antialiasing_means_it(tmp_path):
    assert load_model(graphs.publish(tmp_path, version=1)).card.geometry.antialias
    without = {"resize": {"min_size": 64, "max_size": 96, "antialias": False}}
    assert not load_model(graphs.publish(tmp_path, version=2, card=without)).card.geometry.antialias
