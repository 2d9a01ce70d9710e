import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models.store import (
    ModelPlace,
    StoreMissingError,
    UnusableFileError,
    directories,
    parse_place,
    read_default,
    read_pin,
    signature,
    write_file,
)
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
    assert directories(tmp_path) == (["a"], [tmp_path / "a" / "1"], [tmp_path / "lost+found"])


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
    # "linked" may be a model, and loading a/2 gives the reason
    assert directories(tmp_path) == (
        ["a", "linked"],
        [tmp_path / "a" / "1", tmp_path / "a" / "2"],
        [tmp_path / "linked"],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("shapes", ("shapes", None)), ("shapes\n", ("shapes", None)), (" a.b-c/12 \r\n", ("a.b-c", 12))],
)
@pytest.mark.contract("4.5")
def test_the_file_default_holds_a_name_or_a_name_and_a_version(tmp_path, text, expected):
    assert read_default(tmp_path) is None
    (tmp_path / "default").write_bytes(text.encode())
    assert read_default(tmp_path) == expected


BAD_FILES = [
    (b"", "empty"),
    (b" \n\n", "empty"),
    (b"\xff\xfe\x00", "UTF-8"),
    (b"one\ntwo\n", "on one line"),
    (b"../x", "on one line"),
    (b"/etc/passwd", "on one line"),
    (b"shapes/", "on one line"),
    (b"shapes/-1", "on one line"),
    (b"shapes/one", "on one line"),
    ("shapes/\u0661".encode(), "on one line"),  # a digit, but not an ASCII one
    (b"shapes/1/2", "on one line"),
    (b"\xef\xbb\xbfshapes", "on one line"),  # a byte order mark
    (b"a" * 101, "on one line"),
    (b"a\n" + b" " * 10**6, "on one line"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_FILES)
def test_a_file_default_that_holds_anything_else_is_unusable(tmp_path, data, reason):
    (tmp_path / "default").write_bytes(data)
    with pytest.raises(UnusableFileError, match=reason) as default:
        read_default(tmp_path)
    with pytest.raises(UnusableFileError) as pin:
        read_pin(tmp_path)
    assert str(tmp_path) not in f"{default.value}{pin.value}"


def test_what_is_not_a_regular_file_is_unusable_and_never_waited_for(tmp_path):
    (tmp_path / "default").mkdir()
    with pytest.raises(UnusableFileError, match="not a file"):
        read_default(tmp_path)
    (tmp_path / "default").rmdir()
    os.mkfifo(tmp_path / "default")
    with pytest.raises(UnusableFileError, match="not a file"):
        read_default(tmp_path)


def test_a_link_to_nothing_is_unusable_because_it_shows_that_a_choice_was_meant(tmp_path):
    (tmp_path / "default").symlink_to(tmp_path / "gone")
    for read in (read_default, read_pin):
        with pytest.raises(UnusableFileError, match="link to a file that does not exist"):
            read(tmp_path)


def test_a_pin_is_the_number_of_a_version(tmp_path):
    assert read_pin(tmp_path) is None
    (tmp_path / "default").write_text("12\n")
    assert read_pin(tmp_path) == 12
    for text in ("shapes", "1.5", "-1", "+1", "1 2", "9" * 17):
        (tmp_path / "default").write_text(text)
        with pytest.raises(UnusableFileError, match="number of a version"):
            read_pin(tmp_path)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True), st.none() | st.integers(0, 2**53 - 1))
def test_every_place_is_read_as_it_is_written(name, version):
    assert parse_place(str(ModelPlace(name, version))) == (name, version)


def test_a_file_is_replaced_in_one_step_and_nothing_else_is_left(tmp_path):
    for text in ("1", "2"):
        write_file(tmp_path / "default", text)
        assert (tmp_path / "default").read_text() == f"{text}\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["default"]


def test_the_signature_changes_with_contents_permissions_and_new_files(tmp_path):
    folder = graphs.publish(tmp_path)
    seen = [signature(folder)]
    (folder / "model.json").chmod(0o600)
    seen.append(signature(folder))
    (folder / "model.onnx").write_bytes(b"other")
    seen.append(signature(folder))
    (folder / ".model.onnx.partial").touch()  # as rsync writes
    seen.append(signature(folder))
    (folder / "model.onnx").unlink()
    seen.append(signature(folder))
    assert len(set(seen)) == 5
    assert signature(folder) == seen[-1]


@pytest.mark.contract("4.8")
def test_the_signature_changes_with_other_graphs(tmp_path):
    folder = graphs.publish(tmp_path)
    file = folder / "model.cuda.fp16.onnx"
    file.write_bytes(b"one")
    seen = [signature(folder)]
    with file.open("r+b") as opened:  # in place, so that the folder does not change
        opened.write(b"two, longer")
    seen.append(signature(folder))
    file.chmod(0o600)
    seen.append(signature(folder))
    assert len(set(seen)) == 3
    assert sum(entry[3] for entry in seen[-1]) == len(b"two, longer") + sum(
        (folder / name).stat().st_size for name in ("model.json", "model.onnx")
    )


def test_a_missing_store_raises_an_error_that_names_the_setting(tmp_path):
    with pytest.raises(StoreMissingError, match="MODEL_STORE"):
        directories(tmp_path / "nowhere")
