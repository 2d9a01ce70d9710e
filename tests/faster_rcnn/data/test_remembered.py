"""What decoding found is remembered for files that have not changed, and a cache that cannot be used stops nothing."""

import json
import os
import threading
from pathlib import Path

import pytest

from faster_rcnn.data import decode_check
from faster_rcnn.data.decode_check import check_images
from faster_rcnn.data.image_facts import ImageFacts, examine, facts_from_json
from faster_rcnn.data.remembered import FOLDER_VARIABLE, UNSETTLED, Remembered, cache_folder
from faster_rcnn.data.sources import open_folder
from service.images.depth import ValueRange
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image

FACTS = ImageFacts("digest", "", 100, 60, 6, "PNG", ("wrong_checksum",), ValueRange(16, 4095))


def later() -> int:
    """A clock that is an hour ahead, so that the files of a test count as settled."""
    return 2**62


@pytest.fixture
def source(tmp_path: Path) -> str:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", colour="blue")
    images = [image_entry(1, "a.jpg"), image_entry(2, "b.jpg")]
    return write_coco_folder(tmp_path, images, [annotation_entry(1, 1)])


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of every file that is decoded."""
    sizes: list[int] = []
    monkeypatch.setattr(decode_check, "examine", lambda data: sizes.append(len(data)) or examine(data))
    return sizes


def check(source: str, cache: Path) -> list[str]:
    return [str(fault) for fault in check_images(open_folder(source, "train"), 2, remembered=Remembered(cache, later))]


@pytest.mark.contract("6.13")
def test_a_file_that_has_not_changed_is_decoded_once(
    source: str, tmp_path: Path, examined: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache" / "images.sqlite"
    first = check(source, cache)
    assert len(examined) == 2
    assert "were checked before" not in capsys.readouterr().err
    assert check(source, cache) == first
    assert len(examined) == 2
    assert "2 of 2 images of split train were checked before" in capsys.readouterr().err
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert "a.jpg cannot be read" in check(source, cache)[0]
    assert len(examined) == 3


@pytest.mark.contract("6.13")
def test_a_copy_elsewhere_is_read_and_not_decoded(
    source: str, tmp_path: Path, examined: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a job copies the images to a new folder each time, or a container mounts them anew."""
    cache = tmp_path / "cache" / "images.sqlite"
    check(source, cache)
    capsys.readouterr()
    write_image(tmp_path / "elsewhere" / "a.jpg")  # the same bytes
    write_image(tmp_path / "elsewhere" / "b.jpg", colour="green")
    images = [image_entry(1, "a.jpg"), image_entry(2, "b.jpg")]
    check(write_coco_folder(tmp_path / "elsewhere", images, [annotation_entry(1, 1)]), cache)
    assert len(examined) == 3
    assert "1 of 2 images of split train were checked before" in capsys.readouterr().err


def test_a_replaced_file_with_the_size_and_time_of_the_old_one_is_decoded_again(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.png", Remembered(tmp_path / "images.sqlite", later)
    file.write_bytes(b"old")
    status = file.stat()
    cache.put(file, status, FACTS)
    cache.close()
    assert Remembered(tmp_path / "images.sqlite").get(file, status) == FACTS
    (tmp_path / "new").write_bytes(b"new")
    os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "new").replace(file)
    assert Remembered(tmp_path / "images.sqlite").get(file, file.stat()) is None


def test_a_file_that_may_still_change_within_its_time_stamp_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"old")
    status = file.stat()
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    for age, remembered in ((UNSETTLED - 1, None), (UNSETTLED, FACTS)):
        cache = Remembered(tmp_path / "images.sqlite", clock=lambda age=age: changed + age)
        cache.put(file, status, FACTS)
        cache.close()
        assert Remembered(tmp_path / "images.sqlite").get(file, status) == remembered


def test_the_facts_survive_being_written() -> None:
    assert facts_from_json(json.dumps(FACTS.to_json())) == FACTS


def test_the_oldest_facts_are_forgotten_when_there_are_too_many(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file in files:
        file.touch()
        cache = Remembered(tmp_path / "images.sqlite", later, most=3)
        cache.put(file, file.stat(), FACTS)
        cache.close()
    kept = Remembered(tmp_path / "images.sqlite")
    assert [kept.get(file, file.stat()) is not None for file in files] == [False, False, True, True, True]


@pytest.mark.contract("6.13")
@pytest.mark.parametrize("fault", ["damaged", "folder", "not a folder"])
def test_a_cache_that_cannot_be_used_is_reported_and_stops_nothing(
    source: str, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache" / "images.sqlite"
    if fault == "damaged":
        cache.parent.mkdir()
        cache.write_bytes(b"this is not a database " * 100)
    elif fault == "folder":
        cache.mkdir(parents=True)
    else:
        cache.parent.write_text("a file")
    assert check(source, cache) == []
    printed = capsys.readouterr().err
    assert printed.count("warning: checked images are not remembered") == 1
    assert ("is damaged; delete it" if fault == "damaged" else f"name another folder in {FOLDER_VARIABLE}") in printed


def test_the_place_of_the_cache_can_be_named_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(FOLDER_VARIABLE, " ")
    assert cache_folder() is None
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "faster-rcnn"


@pytest.mark.contract("6.13")
def test_a_check_that_is_interrupted_keeps_what_it_found_and_decodes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        write_image(tmp_path / f"{number}.png", colour=f"#0000{number:02x}", kind="PNG")
    images = [image_entry(number, f"{number}.png") for number in range(20)]
    source, cache = write_coco_folder(tmp_path, images, []), tmp_path / "images.sqlite"
    decoded = threading.Semaphore(0)

    def interrupted(data: bytes) -> ImageFacts:
        if decoded.acquire(blocking=False):
            raise KeyboardInterrupt
        decoded.release()
        decoded.release()
        return examine(data)

    monkeypatch.setattr(decode_check, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_images(open_folder(source, "train"), 1, remembered=Remembered(cache, later))
    kept = Remembered(cache)
    assert [kept.get(file, file.stat()) is not None for file in (tmp_path / "0.png", tmp_path / "1.png")] == [
        True,
        False,
    ]
