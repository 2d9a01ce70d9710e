"""Two processes that differ refuse to train at once, and each says which of them differs, and in what."""

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image

from faster_rcnn.data import decode_check
from faster_rcnn.data.image_facts import examine
from faster_rcnn.data.shapes import Shapes, write_coco
from faster_rcnn.training import agreement, waiting
from faster_rcnn.training.agreement import check_same_start
from faster_rcnn.training.run import RunRecord, begin_run
from faster_rcnn.training.splits import open_splits
from faster_rcnn.training.waiting import alone, each, from_first
from tests.faster_rcnn.training.pair import in_a_pair

MACHINE = r"\([\w.-]+\)"


def options(**changes: object) -> dict[str, object]:
    return vars(argparse.Namespace(data="coco:data", out="run", iterations=5, device=None, resume="auto", **changes))


@pytest.mark.contract("6.16")
def test_processes_with_other_options_or_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_options(rank: int) -> None:
        check_same_start(options(learning_rate=0.5 if rank else 0.1, seed=None if rank else 3))

    said = (
        rf"ValueError: process 1 {MACHINE} has started otherwise than process 0 {MACHINE}: "
        r"--learning-rate 0\.5 instead of 0\.1, --seed not given instead of 3; start all processes with the same"
    )
    assert all(re.match(said, one) for one in in_a_pair(other_options, tmp_path))

    def other_code(rank: int) -> None:
        if rank:
            monkeypatch.setattr(agreement, "_digest_of_code", lambda: "abc")
        check_same_start(options())

    assert all("the code abc instead of " in one for one in in_a_pair(other_code, tmp_path))

    def only_what_may_differ(rank: int) -> str:
        check_same_start(options() | {"device": f"cuda:{rank}", "out": f"/scratch/{rank}"})
        return "agreed"

    assert in_a_pair(only_what_may_differ, tmp_path) == ["agreed", "agreed"]


@pytest.mark.contract("6.16")
def test_a_process_that_finds_no_gpu_is_named(tmp_path: Path) -> None:
    """Torch's device "meta" stands for another kind, so that no GPU is needed."""
    said = rf"process 1 {MACHINE} computes on meta, and process 0 {MACHINE} on cpu; look for missing GPUs or drivers"
    assert all(re.match(said, one) for one in in_a_pair(lambda _: None, tmp_path, devices=("cpu", "meta")))


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """Of a run on images of which both processes have a copy."""
    for split in ("train", "val"):
        write_coco(Shapes(split, 3), tmp_path / "0" / "data")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    monkeypatch.chdir(tmp_path / "0")
    return begin_run(tmp_path / "run", {"data": "coco:data", "batch_size": 2, "iterations": 1}, "", "cpu")


def opened(record: RunRecord) -> Callable[[int], int]:
    return lambda _: len(each(lambda: open_splits(record))[0])


@pytest.mark.contract("6.16")
def test_processes_with_other_images_are_refused(record: RunRecord, tmp_path: Path) -> None:
    assert in_a_pair(opened(record), tmp_path) == ["3", "3"]
    image = tmp_path / "1" / "data" / "train" / "000001.png"
    Image.new("RGB", Image.open(image).size).save(image)
    said = (
        rf"ValueError: process 1 {MACHINE} has other data than process 0 {MACHINE}: "
        r"1 images are changed: .*000001.png \(train\); give all machines the same files"
    )
    assert all(re.match(said, one) for one in in_a_pair(opened(record), tmp_path))


@pytest.mark.contract("6.16")
def test_processes_with_other_annotations_are_refused(record: RunRecord, tmp_path: Path) -> None:
    file = tmp_path / "1" / "data" / "annotations" / "train.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(document))
    found = in_a_pair(opened(record), tmp_path)
    assert all("process 1 " in one and "the annotations of train differ" in one for one in found)


@pytest.mark.contract("6.16")
def test_what_one_process_lacks_is_said_by_all(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "1" / "data" / "train" / "000001.png").unlink()
    first, second = in_a_pair(opened(record), tmp_path)
    assert re.match(r"ValueError: .*image file train/000001.png not found", second)
    assert re.match(rf"OtherProcessError: process 1 {MACHINE} cannot go on: .*image file train/000001.png not", first)


@pytest.mark.contract("6.16")
def test_processes_that_read_the_same_files_divide_the_images(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each split has 3 images: process 0 decodes two of each, and process 1 one of each. Both know all of them."""
    decoded: list[int] = []
    monkeypatch.setattr(decode_check, "examine", lambda data: decoded.append(1) or examine(data))

    def act(_: int) -> tuple[int, int]:
        os.chdir(tmp_path / "0")
        training = open_splits(record)[0]
        return len(decoded), len(training.facts)  # type: ignore[attr-defined]

    assert in_a_pair(act, tmp_path) == ["(4, 3)", "(2, 3)"]


def test_what_the_first_process_finds_or_fails_at_reaches_the_others(tmp_path: Path) -> None:
    def value(rank: int) -> object:
        return alone(lambda: rank), from_first(lambda: f"by {rank}"), each(lambda: rank)

    assert in_a_pair(value, tmp_path) == ["(0, 'by 0', 0)", "(None, 'by 0', 1)"]

    def missing(_: int) -> object:
        return from_first(lambda: Path("/does/not/exist").read_text())

    first, second = in_a_pair(missing, tmp_path)
    assert first.startswith("FileNotFoundError")
    assert re.match(rf"OtherProcessError: process 0 {MACHINE} cannot go on: /does/not/exist: does not exist", second)


@pytest.mark.contract("6.16")
def test_a_process_waits_as_long_as_the_other_lives_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step takes longer than the patience of the process that waits. In the second one nobody acts."""
    monkeypatch.setattr(waiting, "BEAT", 0.05)
    monkeypatch.setattr(waiting, "TIMEOUT", timedelta(seconds=3))
    noticed = tmp_path / "noticed"

    def act(rank: int) -> object:
        from_first(lambda: time.sleep(4))
        if rank == 0:
            while not noticed.exists():
                time.sleep(0.01)
            return "stuck"
        try:
            return alone(lambda: None)
        finally:
            noticed.touch()

    first, second = in_a_pair(act, tmp_path)
    assert first == "stuck"
    assert re.match(rf"OtherProcessError: process 0 {MACHINE} has shown no sign of life for", second)
