"""Two processes against one: the same loss curve from the same global batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faster_rcnn.data.shapes import Shapes, write_coco

ROOT = Path(__file__).resolve().parents[3]
# Plain SGD at a low rate: AdamW's first steps take the sign of a gradient, and so blow up a difference in its last bit.
OPTIONS = (
    "--min-size", "96", "--max-size", "192", "--iterations", "8", "--batch-size", "4",
    "--optimiser", "sgd", "--learning-rate", "0.02", "--warm-up", "2", "--no-mixed-precision",
    "--validation-pictures", "2", "--device", "cpu",
)  # fmt: skip


FAST_RCNN = ("--schedule", "fast-rcnn", "--proposals", "sliding-window", "--proposal-limit", "300")


def train(folder: Path, *options: str, processes: int = 1) -> list[dict[str, float]]:
    """The rows of losses.csv."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(ROOT / "scripts" / "train.py"), *OPTIONS, "--out", str(folder), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("logs are in that folder") == 1
    with (folder / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a few images of several shapes: the generator's million would want as many proposals."""
    folder = tmp_path_factory.mktemp("data")
    for split, images in (("train", 16), ("val", 2)):
        write_coco(Shapes(split, images), folder)
    return f"coco:{folder}"


def test_two_processes_have_the_loss_curve_of_one_on_given_proposals(data: str, tmp_path: Path) -> None:
    """Batch normalisation and all: only rounding is between them."""
    alone = train(tmp_path / "alone", "--data", data, *FAST_RCNN)
    shared = train(tmp_path / "shared", "--data", data, *FAST_RCNN, processes=2)
    assert len(alone) == len(shared) == 8
    for one, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_two_processes_train_jointly_like_one_and_so_does_a_batch_in_parts(data: str, tmp_path: Path) -> None:
    """The first losses are equal. Later a proposal that rounding lets survive or not changes which regions are drawn.

    In parts, batch normalisation sees two images at a time instead of four.
    """
    options = ("--data", data, "--iterations", "4")
    alone = train(tmp_path / "alone", *options)
    shared = train(tmp_path / "shared", *options, processes=2)
    assert shared[0] == pytest.approx(alone[0], rel=1e-4)
    for one, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(one, rel=0.05)
    parts = train(tmp_path / "parts", *options, "--accumulate", "2")
    for name in ("rpn_classification", "rpn_box", "head_classification"):
        assert parts[0][name] == pytest.approx(alone[0][name], rel=0.05), name
