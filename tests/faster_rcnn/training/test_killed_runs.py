"""A run that is killed without warning at any moment and resumed equals one that never was."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from faster_rcnn.detector.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = (
    "--data", "shapes", "--min-size", "96", "--max-size", "192", "--iterations", "24", "--batch-size", "2",
    "--augmentations", "flip", "scale-jitter", "photometric", "--validate-every", "8", "--checkpoint-every", "5",
    "--validation-pictures", "2", "--device", "cpu",
)  # fmt: skip


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "train.py"), "--out", str(folder), *options]


def finish(folder: Path, *options: str) -> None:
    done = subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def kill_some_time_after_it_began(folder: Path, delay: float) -> None:
    process = subprocess.Popen(command(folder, *OPTIONS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "losses.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An unbroken run, and how long it trained."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(folder, *OPTIONS)
    return folder, read_checkpoint(folder)["seconds"]


def test_a_run_killed_at_a_random_moment_and_resumed_is_the_unbroken_one(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    folder, seconds = whole
    delay = random.uniform(0, seconds)  # a moment before the first checkpoint or within any write is as good as any
    print(f"killed {delay:.2f} s into training")
    kill_some_time_after_it_began(tmp_path / "run", delay)
    if not (tmp_path / "run" / "checkpoint.pt").exists() or read_checkpoint(tmp_path / "run")["iteration"] < 24:
        finish(tmp_path / "run", "--resume")
    for which in ("last", "best"):
        one, other = read_checkpoint(folder, which), read_checkpoint(tmp_path / "run", which)
        assert one["iteration"] == other["iteration"]
        for name, value in one["detector"].items():
            assert torch.equal(value, other["detector"][name]), (which, name)
    for name in ("losses.csv", "validation.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (folder / name).read_text()
