"""Two processes against one: the same loss curve from the same global batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from faster_rcnn.data.shapes import Shapes, write_coco
from faster_rcnn.training.run import begin_run
from faster_rcnn.training.schedules import carry_out

TRAIN = Path(__file__).resolve().parents[3] / "scripts" / "train.py"
# Plain SGD at a low rate: the first steps of AdamW follow the sign of a gradient and amplify rounding differences.
OPTIONS = {
    "min_size": 96, "max_size": 192, "iterations": 8, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.02,
    "warm_up": 2, "mixed_precision": False, "validation_pictures": 2, "workers": 0,
}  # fmt: skip
FAST_RCNN = {"schedule": "fast-rcnn", "proposals": ["sliding-window"], "proposal_limit": 300}


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def train_alone(folder: Path, **options: Any) -> list[dict[str, float]]:
    """Trains in this process and returns the rows of losses.csv."""
    carry_out(begin_run(folder, OPTIONS | options, "", "cpu"), folder, torch.device("cpu"))
    return rows(folder)


def train_in_two_processes(folder: Path, **options: Any) -> list[dict[str, float]]:
    """The same by the train command under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(TRAIN), "--out", str(folder), "--device", "cpu"]
    for name, value in (OPTIONS | options).items():
        flag = name.replace("_", "-")
        if value is False:
            command.append(f"--no-{flag}")
        else:
            command += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"{folder}: AP ") == 1  # only the first process prints
    return rows(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a few images of several shapes: proposals for a generated data set would be made for 2000."""
    folder = tmp_path_factory.mktemp("data")
    for split, images in (("train", 16), ("val", 2)):
        write_coco(Shapes(split, images), folder)
    return f"coco:{folder}"


def test_two_processes_have_the_same_loss_curve_as_one_with_fixed_proposals(data: str, tmp_path: Path) -> None:
    """Including batch normalisation, the curves differ only by rounding."""
    alone = train_alone(tmp_path / "alone", data=data, **FAST_RCNN)
    shared = train_in_two_processes(tmp_path / "shared", data=data, **FAST_RCNN)
    assert len(alone) == len(shared) == 8
    for one, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_two_processes_and_micro_batches_train_jointly_like_one_process(data: str, tmp_path: Path) -> None:
    """The first losses are equal. Later, rounding decides whether some proposals survive, and so what is sampled.

    With micro-batches, batch normalisation sees two images at a time instead of four.
    """
    options = {"data": data, "iterations": 4}
    alone = train_alone(tmp_path / "alone", **options)
    shared = train_in_two_processes(tmp_path / "shared", **options)
    assert shared[0] == pytest.approx(alone[0], rel=1e-4)
    for one, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(one, rel=0.05)
    micro_batches = train_alone(tmp_path / "micro-batches", **options, accumulate=2)
    for name in ("rpn_classification", "rpn_box", "head_classification"):
        assert micro_batches[0][name] == pytest.approx(alone[0][name], rel=0.05), name
