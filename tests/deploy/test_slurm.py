"""deploy/slurm/train.sbatch: valid shell, a command line that training accepts, and a job that starts again in time.

SLURM itself is not needed: its commands, and torchrun, are replaced by scripts that note how they were called.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from faster_rcnn.commands.train import build_parser

FILE = Path(__file__).parents[2] / "deploy" / "slurm" / "train.sbatch"
GIVEN = ("--data", "coco:/shared/my images", "--out", "/shared/runs/mine", "--iterations", "5")
STUBS = {
    "srun": 'shift; exec "$@"',  # without its own option
    "torchrun": 'printf "%s\\n" "$@" > "$NOTES/torchrun"; echo $$ > "$NOTES/pid"; trap "exit 143" TERM; '
    'if [ -n "$LONG" ]; then while :; do sleep 0.05; done; fi; exit "$CODE"',
    "scancel": 'echo "scancel $@" >> "$NOTES/calls"; kill -TERM "$(cat "$NOTES/pid")"',
    "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "scontrol $@" >> "$NOTES/calls"; fi',
}


@pytest.fixture
def job(tmp_path: Path):
    """Starts the script as SLURM would, with `code` as the exit code of torchrun, or with one that runs until told."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(code: int = 0, long: str = "") -> subprocess.Popen[bytes]:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path), "LONG": long, "CODE": str(code),
            "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": "1",
        }  # fmt: skip
        return subprocess.Popen(["bash", FILE, *GIVEN], env=environment, stdout=subprocess.DEVNULL)

    return start


def test_the_script_is_valid_shell():
    assert subprocess.run(["bash", "-n", FILE], capture_output=True, text=True).stderr == ""


def test_torchrun_gets_the_machines_and_training_the_command_line(job, tmp_path):
    assert job().wait(60) == 0
    words = (tmp_path / "torchrun").read_text().splitlines()
    launcher, own = words[: words.index("scripts/train.py")], words[words.index("scripts/train.py") + 1 :]
    options = dict(zip(launcher[::2], launcher[1::2], strict=True))
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("2", "8")
    assert options["--rdzv-endpoint"] == "node-a:29400"
    assert options["--rdzv-id"] == "17.1"
    assert own == [*GIVEN, "--resume", "auto"]
    assert build_parser().parse_args(own).resume == "auto"


def test_the_exit_code_of_training_is_that_of_the_job(job, tmp_path):
    assert job(code=3).wait(60) == 3
    assert not (tmp_path / "calls").exists()


def test_before_its_time_is_over_the_job_stops_training_and_then_starts_again(job, tmp_path):
    running = job(long="yes")
    limit = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < limit
        time.sleep(0.01)
    running.send_signal(signal.SIGUSR1)
    assert running.wait(60) == 0
    assert (tmp_path / "calls").read_text().splitlines() == ["scancel --signal=TERM 17", "scontrol requeue 17"]
