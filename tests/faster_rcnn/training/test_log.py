"""The logs of a run that is resumed: entries that will be written again are dropped."""

import csv
import json
from pathlib import Path

from PIL import Image

from faster_rcnn.training.log import RunLog

SHEET = Image.new("RGB", (8, 8))


def write(folder: Path, start: int, end: int) -> None:
    log = RunLog(folder, start)
    for iteration in range(start, end):
        log.step(iteration, 0.1, {"rpn_box": float(iteration)})
        if iteration % 2 == 1:
            log.validation(iteration + 1, {"AP50": 0.5, "loss_rpn_box": 1.0}, SHEET)
    log.close()


def iterations(folder: Path) -> tuple[list[int], list[int]]:
    with (folder / "losses.csv").open(newline="") as file:
        rows = [int(row["iteration"]) for row in csv.DictReader(file)]
    lines = (folder / "validation.jsonl").read_text().splitlines()
    return rows, [json.loads(line)["iteration"] for line in lines]


def test_a_resumed_log_continues_at_its_iteration(tmp_path: Path) -> None:
    write(tmp_path, 0, 6)
    assert iterations(tmp_path) == ([0, 1, 2, 3, 4, 5], [2, 4, 6])
    write(tmp_path, 3, 5)
    assert iterations(tmp_path) == ([0, 1, 2, 3, 4], [2, 4])


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, 0, 4)
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write('{"iteration": 6, "AP')
    write(tmp_path, 4, 6)
    assert iterations(tmp_path) == ([0, 1, 2, 3, 4, 5], [2, 4, 6])


def test_a_run_that_starts_from_the_beginning_drops_all_entries(tmp_path: Path) -> None:
    write(tmp_path, 0, 6)
    write(tmp_path, 0, 2)
    assert iterations(tmp_path) == ([0, 1], [2])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
