"""--val-share: every command divides data without a validation split in the same way."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from faster_rcnn.commands import compare
from faster_rcnn.commands.command_line import val_share_for
from faster_rcnn.training.run import RunRecord, begin_run
from faster_rcnn.training.splits import open_splits
from tests.faster_rcnn.commands.conftest import Done
from tests.faster_rcnn.data.layouts.layout_writers import Object, Photo, labelimg_yolo, roboflow_voc

PHOTOS = [Photo(f"{number}.jpg", 40 + number, 60, (Object("dog", 1, 2, 39, 50),)) for number in range(12)]
OPTIONS = {"batch_size": 2, "iterations": 1}


def sizes(record: RunRecord) -> tuple[int, int]:
    training, validation, _ = open_splits(record)
    return len(training), len(validation)


def test_training_records_the_share_that_it_holds_out(tmp_path: Path) -> None:
    without = str(labelimg_yolo(tmp_path / "without", {"train": PHOTOS}))
    alone = str(roboflow_voc(tmp_path / "alone", {"train": PHOTOS}))
    both = str(roboflow_voc(tmp_path / "both", {"train": PHOTOS[:8], "val": PHOTOS[8:]}))
    records = [begin_run(tmp_path / "run", {"data": data, **OPTIONS}, "", "cpu") for data in (without, alone, both)]
    assert [record.val_share for record in records] == [0.2, 0.2, None]
    assert sizes(records[0]) == sizes(records[1])  # by the names, which are the same
    assert sum(sizes(records[0])) == 12
    assert sizes(records[2]) == (8, 4)
    half = begin_run(tmp_path / "run", {"data": alone, "val_share": 0.5, **OPTIONS}, "", "cpu")
    assert half.val_share == 0.5
    assert RunRecord.from_json(json.loads(json.dumps(half.to_json()))).val_share == 0.5


def test_a_recorded_share_is_used_for_the_data_of_the_run_alone() -> None:
    record = RunRecord(data="own", val_share=0.3)
    assert val_share_for(argparse.Namespace(val_share=None), record, "own") == 0.3
    assert val_share_for(argparse.Namespace(val_share=None), record, "other") is None
    assert val_share_for(argparse.Namespace(val_share=0.1), record, "own") == 0.1


def test_compare_passes_the_share_to_its_runs() -> None:
    arguments = compare.build_parser().parse_args(["--data", "x", "--out", "y", "--val-share", "0.25"])
    options = compare.options_of_arm(compare.ARMS["RPN"], 0, arguments)
    assert options[options.index("--val-share") + 1] == "0.25"


def test_the_check_shows_the_parts_and_the_layout(tmp_path: Path, run: Callable[..., Done]) -> None:
    data = labelimg_yolo(tmp_path, {"train": PHOTOS})
    done = run("check", "--data", data, "--workers", 1)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"{data}: YOLO (classes.txt); splits: none"
    assert [line for line in lines if line.startswith("== ")] == ["== train", "== val"]
    figures = [line for line in lines if "by their file names" in line]
    assert len(figures) == 1
    parts = [int(line.split()[0]) for line in lines if " images, 0 of them without objects" in line]
    assert f"{parts[0]} of 12 images are train and {parts[1]} are val" in figures[0]


@pytest.mark.parametrize("share", ["0", "1", "-0.1", "1.5", "nan", "half"])
def test_a_share_is_between_0_and_1(run: Callable[..., Done], share: str) -> None:
    assert "--val-share" in run("check", "--data", "x", f"--val-share={share}").refusal
