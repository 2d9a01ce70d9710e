"""The memory that this process may use, and the memory that it uses now."""

from __future__ import annotations

import os
from pathlib import Path

from service.engine.cgroups import MEMBERSHIP, MOUNTED, folders, numbers

UNKNOWN = 4 * 2**30  # bytes assumed on a system that tells neither its memory nor a limit


def memory_limit(cgroups: Path = MOUNTED, membership: Path = MEMBERSHIP) -> int:
    """The smallest of the machine's memory and the limits of all control groups that contain this process, in bytes.

    cgroups     where control groups are mounted
    membership  the file that lists the control groups of this process
    """
    limits = [machine_memory()]
    for folder in folders("memory", cgroups, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            limits += numbers(folder / name)  # "max", or a number far above any memory, means no limit
    return min(limits)


def machine_memory() -> int:
    """The machine's memory in bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return UNKNOWN


def resident(status: Path = Path("/proc/self/statm")) -> int:
    """The bytes of memory that this process occupies now; 0 on a system other than Linux."""
    pages = numbers(status)
    return pages[1] * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0
