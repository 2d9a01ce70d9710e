"""One line for what ends a command; a bug keeps its traceback."""

import concurrent.futures.process
import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from faster_rcnn.commands.command_line import run_command
from faster_rcnn.commands.failures import in_one_line
from faster_rcnn.training.stopping import stop_after_iteration


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. "),
            "was killed (Killed), probably because",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly"),
            "a process that prepares images was kill",
        ),
        (
            RuntimeError("DataLoader worker (pid 17) is killed by signal: Bus error. It is …"),
            "(/dev/shm) full; give it more",
        ),
        (RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode"), "(/dev/shm) is full"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "(/dev/shm) is full"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "the memory is used up",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:1] file write failed"), "no room on the disk"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [::1]:1"),
            "another process of this run",
        ),
        (
            concurrent.futures.process.BrokenProcessPool("A process was terminated abruptly"),
            "a worker process was killed",
        ),
        (MemoryError(), "the memory is used up; give the container"),
        (OSError(errno.ENOSPC, "No space left on device"), "no room on the disk ("),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "is not UTF-8 (invalid start byte at byte 0)",
        ),
        (ValueError(), "ValueError"),  # without any text
        (
            FileNotFoundError(
                "Caught FileNotFoundError in DataLoader worker\nFileNotFoundError: [Errno 2] No such: '/a.jpg'"
            ),
            "/a.jpg: does not exist; check the path",
        ),
    ],
)
@pytest.mark.contract("6.2")
def test_each_cause_has_its_line(error: Exception, line: str, tmp_path: Path) -> None:
    import torch.distributed  # noqa: F401  the command has imported it by then

    said = in_one_line(error, tmp_path)
    assert said is not None
    assert line in said
    assert "\n" not in said
    assert "Errno" not in said


def test_a_bug_is_not_explained_away() -> None:
    assert in_one_line(RuntimeError("shapes differ")) is None
    assert in_one_line(KeyError("x")) is None


def test_sigterm_ends_a_command_in_one_line_after_its_clean_up(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)  # the handler runs before the wait ends
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run_command("faster-rcnn x", command) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "faster-rcnn x: stopped by SIGTERM\n"
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_request_waits_for_the_iteration_and_a_second_one_does_not() -> None:
    with stop_after_iteration() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_error_behind_another_one_counts() -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 5637312 vs 5637200")
    error.__context__ = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    line = in_one_line(error)
    assert line is not None
    assert line.startswith("a process that prepares images was killed (Killed), probably because the memory is used")
    error.__context__ = KeyError("a bug")
    assert in_one_line(error) is None
