"""Processor time and memory of a process and its children, from Linux's /proc."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
SAMPLED_EVERY = 0.1  # seconds; reading a few files costs 0.1 ms


@dataclass(frozen=True)
class Usage:
    """Processor seconds of a server so far, and its bytes in memory now; None where they are unknown."""

    cpu_seconds: float | None
    memory: int | None


UNKNOWN = Usage(None, None)


def tree(pid: int) -> list[int]:
    """The process and all its descendants. Empty where there is no /proc."""
    parents = {}
    for folder in PROC.glob("[0-9]*"):
        if fields := _stat(int(folder.name)):
            parents[int(folder.name)] = int(fields[1])
    found = [pid] if pid in parents else []
    for parent in found:  # grows while it is walked
        found.extend(child for child, its_parent in parents.items() if its_parent == parent)
    return found


def usage(pids: list[int]) -> Usage:
    """The sum over `pids`. Processes that have ended count as zero."""
    if not pids:
        return UNKNOWN
    ticks, pages = 0, 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += int(fields[11]) + int(fields[12])  # utime and stime
            pages += int(fields[21])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


def wait(pids: list[int], seconds: float) -> None:
    """Returns once all `pids` have released their memory, or after `seconds`.

    The system may still be taking a process down after the call that killed it has returned.
    """
    deadline = time.monotonic() + seconds
    while usage(pids).memory and time.monotonic() < deadline:
        time.sleep(0.01)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may contain anything; field 0 is the state."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Watch:
    """Samples the memory of some processes while the context lasts.  peak: the most bytes seen."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.peak: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while True:
            if (memory := usage(self._pids).memory) is not None:
                self.peak = max(memory, self.peak or 0)
            if self._over.wait(SAMPLED_EVERY):
                return
