"""The memory that this process may use, and the memory that it uses now."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from service.engine.cgroups import MEMBERSHIP, MOUNTED, folders, numbers

MIB = 2**20
# For Python's own objects, the kernel's socket buffers, growth of ONNX Runtime's arenas, and fragments in the heap.
LEAST_RESERVE = 64 * MIB
RESERVE_SHARE = 16
LEAST_BUDGET = 32 * MIB
# Parameters of glibc's mallopt, from malloc.h. Blocks above the threshold for mmap are mapped on their own, and so
# returned when they are freed. Images of a million pixels and less stay below it, because mapping costs time.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD = 4 * MIB
TRIM_THRESHOLD = 16 * MIB  # with 1 MiB, every image grew and shrank the heap, which cost 0.5 ms
UNKNOWN = 4 * 2**30  # bytes assumed on a system that tells neither its memory nor a limit


class Division(NamedTuple):
    """How the memory of the process is divided, in bytes: limit = used + set_aside + budget."""

    limit: int
    used: int
    set_aside: int
    budget: int


def divide(limit: int, used: int, needed: int) -> Division:
    """What is left of `limit` as memory budget.

    used    bytes in use once the models are loaded and warmed up
    needed  further bytes that the service uses outside of the budget

    A reserve of 1 / RESERVE_SHARE of the limit, at least LEAST_RESERVE, is kept too. The budget is never below
    LEAST_BUDGET, so that at least small images are answered.
    """
    set_aside = needed + max(LEAST_RESERVE, limit // RESERVE_SHARE)
    return Division(limit, used, set_aside, max(LEAST_BUDGET, limit - used - set_aside))


def available(cgroups: Path = MOUNTED, membership: Path = MEMBERSHIP) -> int:
    """The bytes of memory that this process may use.

    The smallest limit of the control groups that contain this process. Without such a limit, half of the machine's
    memory, because other processes need memory too.

    cgroups     where control groups are mounted
    membership  the file that lists the control groups of this process
    """
    limits = []
    for folder in folders("memory", cgroups, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            limits += numbers(folder / name)  # "max", or a number far above any memory, means no limit
    machine = machine_memory()
    return min((limit for limit in limits if limit < machine), default=machine // 2)


def return_freed_memory() -> None:
    """Makes the C library return freed blocks of large images to the system at once (glibc only).

    By default it raises its thresholds whenever a larger block is freed, up to 32 MiB. The freed blocks of large images
    then stay in the heaps of the threads that decoded them, which was up to 400 MB after a burst of large images. Other
    C libraries have no such thresholds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


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
