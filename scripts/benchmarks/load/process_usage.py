"""What a process and its children take: processor time and memory, as Linux keeps them in /proc."""

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
    """Of a server: processor seconds so far, and bytes in memory now; None where that cannot be known."""

    cpu_seconds: float | None
    memory: int | None


UNKNOWN = Usage(None, None)


def tree(pid: int) -> list[int]:
    """The process and all below it. Empty where there is no /proc."""
    parents = {}
    for folder in PROC.glob("[0-9]*"):
        if fields := _stat(int(folder.name)):
            parents[int(folder.name)] = int(fields[1])
    found = [pid] if pid in parents else []
    for parent in found:  # grows while it is walked
        found.extend(child for child, its_parent in parents.items() if its_parent == parent)
    return found


def usage(pids: list[int]) -> Usage:
    """The sum over `pids`; those that have ended count nothing."""
    if not pids:
        return UNKNOWN
    ticks, pages = 0, 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += int(fields[11]) + int(fields[12])  # utime and stime
            pages += int(fields[21])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


def wait(pids: list[int], seconds: float) -> None:
    """Returns once all `pids` have given back their memory, or after so many seconds. Of a killed process, the system
    may still be taking it down when the kill returns."""
    deadline = time.monotonic() + seconds
    while usage(pids).memory and time.monotonic() < deadline:
        time.sleep(0.01)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the name, which may hold anything: the state is number 0."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Watch:
    """Follows the memory of some processes while the context lasts.  peak: the most bytes seen."""

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
