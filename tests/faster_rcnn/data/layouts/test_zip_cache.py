"""Zip files: unpacked once, into the cache, whatever they hold."""

import json
import shutil
import stat
import struct
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faster_rcnn.data.layouts import zip_cache
from faster_rcnn.data.layouts.zip_cache import unpacked
from faster_rcnn.data.sources import open_dataset, open_folder
from service.command_line import main
from tests.faster_rcnn.data.layouts import layout_writers as writers
from tests.faster_rcnn.data.layouts.layout_writers import Object, Photo, text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "faster-rcnn" / "data"


def packed(file: Path, **contents: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file


def files_in(folder: Path) -> list[str]:
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())


def test_a_file_is_unpacked_once_until_its_contents_change(tmp_path: Path, cache: Path) -> None:
    file = packed(tmp_path / "a.zip", **{"x/a.txt": b"one"})
    folder = unpacked(file)
    assert files_in(folder) == ["x/a.txt"]
    (folder / "x" / "a.txt").write_text("changed, to see whether it is unpacked again")
    shutil.copy(file, tmp_path / "copy.zip")
    assert unpacked(tmp_path / "copy.zip") == folder
    assert (folder / "x" / "a.txt").read_text().startswith("changed")
    assert unpacked(packed(file, **{"x/a.txt": b"two"})) != folder
    assert len(list(cache.iterdir())) == 2, "no temporary folder is left"


def test_names_of_windows_and_mac_programs(tmp_path: Path) -> None:
    names = {"a\\b.txt": b"1", "__MACOSX/x/._c.txt": b"2", "x/.DS_Store": b"3", "x/._c.txt": b"4", "Hände.txt": b"5"}
    file = packed(tmp_path / "a.zip", **names)
    # macOS writes UTF-8 without the flag 0x800 that says so, in the local and in the central header.
    data = file.read_bytes()
    assert data.count(struct.pack("<H", 0x800)) >= 2
    file.write_bytes(data.replace(b"\x14\x00\x00\x08", b"\x14\x00\x00\x00"))
    assert files_in(unpacked(file)) == ["Hände.txt", "a/b.txt"]


def link(name: str, target: str) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)

    return write


def entry(name: str, data: bytes = b"x") -> Callable[[zipfile.ZipFile], None]:
    return lambda archive: archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (entry("../outside.txt"), "leads outside the folder"),
        (entry("a/../../outside.txt"), "leads outside the folder"),
        (entry("/etc/outside.txt"), "leads outside the folder"),
        (entry("..\\outside.txt"), "leads outside the folder"),
        (entry("C:\\outside.txt"), "leads outside the folder"),
        (link("images", "/etc"), "a link or a device"),
        (entry(".hidden"), "it holds no files"),
        (
            entry("zeros.bmp", bytes(150_000_000)),
            "that would become 1 files and 150 MB; more than 200 times is refused",
        ),
    ],
)
@pytest.mark.contract("6.3")
def test_a_hostile_file_is_refused_and_leaves_nothing(
    tmp_path: Path, cache: Path, write: Callable[[zipfile.ZipFile], None], complaint: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        write(archive)
    with pytest.raises(ValueError, match=complaint) as refusal:
        unpacked(tmp_path / "a.zip")
    assert str(refusal.value).startswith(str(tmp_path / "a.zip"))
    assert not cache.exists()
    assert files_in(tmp_path) == ["a.zip"]


def test_an_encrypted_file(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.zip", **{"a.txt": b"secret"})
    data = bytearray(file.read_bytes())
    data[6] |= 1  # flags of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # flags of the central directory
    file.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted; unpack it with its password and name the folder"):
        unpacked(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_refused_or_gives_what_it_held(tmp_path: Path, cache: Path, data: st.DataObject) -> None:
    """A file is cut, or some of its bytes are replaced. It may be taken only if no content changed."""
    contents = {"a.txt": b"some text " * 20, "b/c.txt": bytes(range(256))}
    file = packed(tmp_path / "a.zip", **contents)
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            whole[place] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    shutil.rmtree(cache, ignore_errors=True)
    refusal = ""
    try:
        folder = unpacked(file)
    except (ValueError, OSError) as error:
        refusal = str(error)
    if refusal:
        assert "a.zip" in refusal
        assert not list(cache.glob("*/unpacked"))
        return
    assert {(folder / name).read_bytes() for name in files_in(folder)} <= set(contents.values())


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(zip_cache.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 50_000_000))
    with pytest.raises(OSError, match=r"a.zip needs 0 MB here, and only 50 MB are free; .*XDG_CACHE_HOME"):
        unpacked(packed(tmp_path / "a.zip", a=b"x"))


def test_a_cache_that_cannot_be_made(tmp_path: Path, cache: Path) -> None:
    text(tmp_path / "cache", "a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot be unpacked here \(.*\); set XDG_CACHE_HOME to another folder"):
        unpacked(packed(tmp_path / "a.zip", a=b"x"))


def test_a_description_in_a_zip_file_cannot_name_files_outside(tmp_path: Path) -> None:
    """`data.yaml` comes from whoever made the zip file."""
    photo = Photo("secret.jpg", 60, 40, (Object("dog", 10, 20, 40, 40),))
    writers.ultralytics(tmp_path / "outside", {"train": [photo]})
    config = f"path: {tmp_path / 'outside'}\ntrain: images/train\nnames: [dog]\n"
    text(tmp_path / "set" / "data.yaml", config)
    open_dataset(str(tmp_path / "set"), "train")  # a folder may
    file = packed(tmp_path / "set.zip", **{"data.yaml": config.encode(), "images/val/a.jpg": b""})
    with pytest.raises(ValueError, match="its train is 'images/train', which is not there"):
        open_dataset(str(file), "train")
    listed = {
        "data.yaml": b"train: t.txt\nnames: [dog]\n",
        "t.txt": f"{tmp_path}/outside/images/train/secret.jpg".encode(),
    }
    with pytest.raises(ValueError, match=r"which is not there|has no images"):
        open_dataset(str(packed(tmp_path / "listed.zip", **listed)), "train")


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    file = packed(tmp_path / "a.zip", **{"a.txt": b"a"})
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OSError, match=r"a\.zip cannot be unpacked, because this user has no home folder; set XDG"):
        unpacked(file)


def test_messages_name_files_by_the_zip_file_and_not_by_the_cache(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the layout's line, a warning, an error, and the error that ends a command."""
    data = tmp_path / "data"
    photo = Photo("a.jpg", 40, 30, (Object("dog", 1, 2, 20, 22),))
    writers.write_photo(data / "set" / "train" / "a.jpg", photo)
    document = writers.coco([photo], ["dog"])
    del document["images"][0]["width"]  # a warning
    text(data / "set" / "annotations" / "train.json", json.dumps(document))
    file = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", data))
    shutil.rmtree(data)

    (warning,) = open_folder(str(file), "train").faults
    assert str(warning).startswith(f"{file}/set/annotations/train.json:1:")
    document["images"][0]["file_name"] = "b.jpg"
    text(data / "set" / "annotations" / "train.json", json.dumps(document))
    shutil.make_archive(str(tmp_path / "pets"), "zip", data)
    for command in (["train", "--out", str(tmp_path / "run")], ["check"]):
        assert main([*command, "--data", str(file)]) == 1
    printed = "".join(capsys.readouterr())
    assert f"{file}/set/annotations/train.json:1:" in printed
    assert str(cache) not in printed
