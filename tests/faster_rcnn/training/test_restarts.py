"""Two processes under torchrun, of which one is killed or both are stopped: the same command line goes on.

Each process works in a folder of its own, as on two machines: both have the images, and only the first one the run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from faster_rcnn.data.shapes import Shapes, write_coco
from faster_rcnn.detector.checkpoint import read_checkpoint

TRAIN = Path(__file__).resolve().parents[3] / "scripts" / "train.py"
ITERATIONS = 24
OPTIONS = (
    "--data", "coco:data", "--out", "run", "--resume", "auto", "--device", "cpu", "--workers", "1",
    "--min-size", "64", "--max-size", "128", "--batch-size", "4", "--iterations", str(ITERATIONS),
    "--validate-every", "4", "--validation-images", "3",
)  # fmt: skip
IN_ITS_FOLDER = ("sh", "-c", 'cd "$RANK" && exec "$@"', "sh")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for split, number in (("train", 12), ("val", 3)):
        write_coco(Shapes(split, number), folder)
    return folder


def start(folder: Path, images: Path, checkpoint_every: int, restarts: int = 0) -> "subprocess.Popen[str]":
    """Two processes under torchrun, which work in the folders 0 and 1."""
    for name in ("0", "1"):
        if not (folder / name).exists():
            shutil.copytree(images, folder / name / "data")
    words = [sys.executable, str(TRAIN), *OPTIONS, "--checkpoint-every", str(checkpoint_every)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [
            *launcher,
            "--max-restarts",
            str(restarts),
            "--no-python",
            "sh",
            "-c",
            'cd "$RANK" && exec "$@"',
            "sh",
            *words,
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(launcher: "subprocess.Popen[str]") -> str:
    """What it has printed, once it has ended."""
    try:
        return launcher.communicate(timeout=300)[0]
    finally:
        for child in [launcher, *processes_of(launcher)]:
            child.kill()


def processes_of(launcher: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, without those that prepare images for them."""
    return psutil.Process(launcher.pid).children() if launcher.poll() is None else []


def wait_until(condition: Callable[[], bool], launcher: "subprocess.Popen[str]") -> None:
    limit = time.monotonic() + 300
    while not condition():
        if launcher.poll() is not None or time.monotonic() > limit:
            pytest.fail(end(launcher)[-3000:])
        time.sleep(0.01)


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    launcher = start(folder, images, checkpoint_every=1000)
    printed = end(launcher)
    assert launcher.returncode == 0, printed
    return folder / "0" / "run"


def assert_equal_runs(run: Path, unbroken: Path) -> None:
    for which in ("last", "best"):
        one, other = read_checkpoint(unbroken, which), read_checkpoint(run, which)
        assert one["iteration"] == other["iteration"]
        for name, value in one["detector"].items():
            assert torch.equal(value, other["detector"][name]), (which, name)
    for name in ("losses.csv", "validation.jsonl"):
        assert (run / name).read_text() == (unbroken / name).read_text()
    assert len((run / "losses.csv").read_text().splitlines()) == 1 + ITERATIONS


@pytest.fixture
def random_seed() -> int:
    """Set KILL_SEED to repeat a failure; pytest prints the seed of a failed test."""
    seed = int(os.environ.get("KILL_SEED") or random.randrange(10**6))
    print(f"KILL_SEED={seed}")
    return seed


@pytest.mark.contract("6.15")
@pytest.mark.contract("6.16")
def test_a_process_that_is_killed_at_a_random_moment_is_restarted_and_the_result_is_that_of_an_unbroken_run(
    images: Path, unbroken: Path, random_seed: int, tmp_path: Path
) -> None:
    """The moment may be before the first checkpoint, between two, during a validation or a write."""
    chance = random.Random(random_seed)
    run = tmp_path / "0" / "run"
    launcher = start(tmp_path, images, checkpoint_every=3, restarts=1)
    wait_until((run / "run.json").exists, launcher)
    time.sleep(chance.uniform(0, read_checkpoint(unbroken)["seconds"]))
    if trainers := processes_of(launcher):
        chance.choice(trainers).kill()
    printed = end(launcher)
    assert launcher.returncode == 0, printed
    assert_equal_runs(run, unbroken)
    assert not (tmp_path / "1" / "run").exists()


@pytest.mark.contract("6.9")
@pytest.mark.contract("6.15")
def test_sigterm_stops_all_processes_after_the_same_iteration_which_is_saved(
    images: Path, unbroken: Path, tmp_path: Path
) -> None:
    """A scheduler signals every process of a job; torchrun then sends the signal to its processes once more."""
    run = tmp_path / "0" / "run"
    launcher = start(tmp_path, images, checkpoint_every=1000)
    wait_until(lambda: (run / "best.pt").exists(), launcher)  # after the first validation
    for trainer in processes_of(launcher):
        os.killpg(trainer.pid, signal.SIGTERM)
    launcher.send_signal(signal.SIGTERM)
    printed = end(launcher)
    assert launcher.returncode != 0
    done = read_checkpoint(run)["iteration"]
    assert 4 <= done < ITERATIONS
    assert printed.count(f"stopped after iteration {done}, which is saved") == 2
    again = start(tmp_path, images, checkpoint_every=1000)
    printed = end(again)
    assert again.returncode == 0, printed
    assert_equal_runs(run, unbroken)
