"""What ends a command, in one line: the cause and the remedy. A bug is not among these and keeps its traceback."""

import errno
import re
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

from faster_rcnn.files import in_words

MORE_MEMORY = "give the container or job more memory, or lower --workers, --batch-size or --max-size"
MORE_SHARED_MEMORY = (
    "give it more (docker run --shm-size=2g, or --ipc=host), or train with --workers 0, which needs none"
)
DEVICE_IS_FULL = "the device ran out of memory; lower --batch-size, or train with --accumulate"
_WITH_NUMBER = re.compile(r"\[Errno (\d+)\] [^:]+(?:: '(.+?)')?")
_KILLED = re.compile(
    r"DataLoader worker \(pid\S* (?P<pid>[\d, ]+)\) (?:is killed by signal: (?P<signal>[\w ]+)|exited)"
)
_OTHER_PROCESS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError", "Gloo")


def in_one_line(error: BaseException, out: Path | None = None) -> str | None:
    """The cause and the remedy; None if the error is a bug.

    out: where the command writes, for operating-system errors that do not name a file.
    """
    if isinstance(error, OSError):
        return system_error(error, out)
    if isinstance(error, MemoryError):
        return f"the memory is used up; {MORE_MEMORY}"
    if isinstance(error, UnicodeDecodeError):
        return f"a file that should hold text is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return f"a name has a character that cannot be written ({error.object[error.start]!a}); rename the file"
    if isinstance(error, ValueError | FloatingPointError):
        return _last_line(error)
    if not isinstance(error, RuntimeError):
        return None
    if (line := _of_runtime(error, out)) is None and isinstance(error.__context__, RuntimeError | OSError):
        # DataLoader's signal handler may raise while torch.save writes, which then complains about its archive.
        return in_one_line(error.__context__, out)
    return line


def system_error(error: OSError, out: Path | None = None) -> str:
    """An operating-system error: the file, what happened, and what to do."""
    if error.errno is None or error.strerror is None:
        return _last_line(error)  # raised by this project, with a remedy of its own; or by a worker process
    return in_words(error, out)


def _last_line(error: Exception) -> str:
    """The last line of the message: an error from a worker process begins with the worker's traceback."""
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    last = re.sub(r"^\w*(Error|Exception): ", "", last)
    if (raw := _WITH_NUMBER.fullmatch(last)) is not None:
        return in_words(OSError(int(raw[1]), "", raw[2]))
    return last


def _of_runtime(error: RuntimeError, out: Path | None) -> str | None:
    text = str(error)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return DEVICE_IS_FULL
    if isinstance(error, BrokenExecutor):
        return f"a worker process was killed, probably because the memory is used up; {MORE_MEMORY}"
    if (killed := _KILLED.search(text)) is not None:
        return _of_killed_worker(killed)
    if "shared memory" in text or "/torch_" in text:
        return f"the shared memory (/dev/shm) is full; {MORE_SHARED_MEMORY}"
    if "can't allocate memory" in text or "std::bad_alloc" in text:
        return f"the memory is used up; {MORE_MEMORY}"
    if "No space left on device" in text or "file write failed" in text:
        return in_words(OSError(errno.ENOSPC, ""), out)
    if _is_of_several_processes(error, text):
        return (
            "another process of this run has ended, so none of them can go on; its own message is above or below. If "
            f"there is none, it was killed, probably because the memory is used up; {MORE_MEMORY}"
        )
    return None


def _of_killed_worker(killed: re.Match[str]) -> str:
    if "Bus error" in (killed["signal"] or ""):
        return f"a worker process found the shared memory (/dev/shm) full; {MORE_SHARED_MEMORY}"
    how = f"killed ({killed['signal'].strip()})" if killed["signal"] else "killed"
    return (
        f"a process that prepares images was {how}, probably because the memory is used up (pid {killed['pid']}); "
        f"{MORE_MEMORY}"
    )


def _is_of_several_processes(error: RuntimeError, text: str) -> bool:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None:
        return False
    return isinstance(error, distributed.DistError) or any(words in text for words in _OTHER_PROCESS)
