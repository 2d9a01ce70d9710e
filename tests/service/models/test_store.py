import os
from pathlib import Path

import pytest

from service.models.store import StoreMissingError, default_name, directories
from tests.service import graphs


def test_finished_versions_are_found_and_unfinished_ones_are_not(tmp_path):
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


def test_a_link_into_a_folder_without_permission_does_not_hide_the_others(tmp_path, monkeypatch):
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


def test_the_default_is_the_name_in_the_file_called_default(tmp_path):
    assert default_name(tmp_path) is None
    (tmp_path / "default").write_text("shapes\n")
    assert default_name(tmp_path) == "shapes"
    (tmp_path / "default").write_text("\n")
    assert default_name(tmp_path) is None


def test_a_missing_store_raises_an_error_that_names_the_setting(tmp_path):
    with pytest.raises(StoreMissingError, match="MODEL_STORE"):
        directories(tmp_path / "nowhere")
