"""What is known about a run folder before anything is written: other trainings, and the room on the disk."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from faster_rcnn.detector.checkpoint import BEST, NAME, save_state
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training import run_folder
from faster_rcnn.training.optimiser import build_optimiser
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.run import RunRecord
from faster_rcnn.training.run_folder import bytes_to_write, check_room, check_unused, remove_leftovers, used_alone

OPTIONS = TrainingOptions(iterations=1000, batch_size=2, learning_rate=0.1, warm_up=1, validate_every=500)
RECORD = RunRecord(config=default_config("compact", ("a", "b")), options=OPTIONS)

pytestmark = pytest.mark.skipif(run_folder.fcntl is None, reason="this system has no file locks")


@pytest.mark.contract("6.9")
def test_a_folder_is_refused_while_another_process_uses_it_and_free_once_that_is_killed(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from faster_rcnn.training.run_folder import used_alone
with used_alone(Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=r"another training uses .*; wait until it ends, stop it, or choose"):
        check_unused(tmp_path)
    other.kill()
    other.communicate()
    check_unused(tmp_path)
    assert not list(tmp_path.iterdir())  # the lock leaves no file


def test_a_worker_process_that_outlives_its_parent_does_not_keep_the_folder_locked(tmp_path: Path) -> None:
    """A process that prepares images sees after seconds that its parent was killed, and torchrun restarts at once."""
    program = f"""
import os, sys
from pathlib import Path
from faster_rcnn.training.run_folder import used_alone
with used_alone(Path({str(tmp_path)!r})):
    if os.fork() == 0:
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
    os.kill(os.getpid(), 9)
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "forked\n"
    assert other.wait(60) == -9
    check_unused(tmp_path)
    other.communicate()


def test_a_folder_can_be_locked_again_after_a_run(tmp_path: Path) -> None:
    for _ in range(2):
        with used_alone(tmp_path):
            pass
    check_unused(tmp_path / "does-not-exist-yet")


def test_parts_of_files_that_a_killed_process_left_are_removed(tmp_path: Path) -> None:
    (tmp_path / "1-rpn").mkdir()
    for name in (".checkpoint.pt.17.part", "1-rpn/.best.pt.17.part", "notes.part", "checkpoint.pt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {file.name for file in tmp_path.rglob("*.p*")} == {"notes.part", "checkpoint.pt"}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_room_for_a_run_is_that_of_its_checkpoints(tmp_path: Path, optimiser: str) -> None:
    """At its largest a run has two checkpoints, because one replaces the other, and the best detector."""
    record = replace(RECORD, options=replace(OPTIONS, optimiser=optimiser))
    detector = FasterRCNN(record.detector_config)
    engine = build_optimiser(detector, record.training_options)
    for parameter in detector.parameters():
        parameter.grad = parameter.detach().clone()
    engine.step()  # the values per weight exist only after a step
    needed = bytes_to_write(tmp_path, record)
    save_state(tmp_path / NAME, detector, "joint", 1, optimiser=engine.state_dict())
    save_state(tmp_path / BEST, detector, "joint", 1)
    checkpoint, best = (tmp_path / NAME).stat().st_size, (tmp_path / BEST).stat().st_size
    logs = 1000 * 600 + 3 * 2_000_000 + 500_000  # iterations; two validations and the last one; the rest
    assert needed == pytest.approx(2 * checkpoint + best + logs, rel=0.02)
    assert bytes_to_write(tmp_path, record) == pytest.approx(checkpoint, rel=0.02)  # a resumed run replaces only


@pytest.mark.contract("6.9")
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "free_bytes", lambda _: 12_000_000)
    with pytest.raises(OSError, match=r"run: no room on the disk for this run \(\d+\.\d MB needed, 12\.0 MB free\)"):
        check_room(tmp_path / "run", RECORD)
    monkeypatch.setattr(run_folder, "free_bytes", lambda _: 10**9)
    check_room(tmp_path / "run", RECORD)
    assert not list(tmp_path.iterdir())


def test_alternating_training_needs_room_for_each_step(tmp_path: Path) -> None:
    whole = replace(RECORD, schedule="alternating", step_iterations=(400, 200, 200, 200))
    assert bytes_to_write(tmp_path, whole) > 3 * bytes_to_write(tmp_path, RECORD)
