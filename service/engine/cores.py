"""The number of CPU cores that this process may use, according to its affinity and its control groups' quotas."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from service.engine.cgroups import MEMBERSHIP, MOUNTED, folders, numbers

BACKGROUND = 3  # "nice" value: a busy thread of normal importance gets twice the time of such a thread

CAN_YIELD = sys.platform == "linux"  # elsewhere a thread's importance is that of its process


def run_in_background() -> None:
    """Lets all threads of normal importance go before the calling thread, when cores are scarce (on Linux)."""
    if CAN_YIELD:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND)


def usable_cores(cgroups: Path = MOUNTED, membership: Path = MEMBERSHIP) -> int:
    """The smallest of the affinity and all quotas, each rounded up to whole cores.

    cgroups     where control groups are mounted
    membership  the file that lists the control groups of this process
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The quota in cores of each control group that contains this process, from the innermost to the root."""
    for folder in folders("cpu", cgroups, membership):
        quota = numbers(folder / "cpu.max")
        quota = quota or numbers(folder / "cpu.cfs_quota_us") + numbers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:  # "max" or -1 means no limit
            yield quota[0] / quota[1]
