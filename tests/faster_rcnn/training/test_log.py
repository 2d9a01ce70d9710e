"""The logs of a run that is resumed: entries that will be written again are dropped."""

import csv
import json
import subprocess
import sys
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


def test_rows_that_do_not_fit_are_not_written_in_part(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from faster_rcnn.training.log import append
file = Path({str(tmp_path / "losses.csv")!r})
append(file, "a,b\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (6, 6))
try:
    append(file, "1,2\\n3,4\\n")
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "losses.csv: the file is larger than the system allows" in done.stdout
    assert (tmp_path / "losses.csv").read_text() == "a,b\n"
