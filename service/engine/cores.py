"""The number of CPU cores that this process may use, according to its affinity and its control groups' quotas."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The smallest of the affinity and all quotas, each rounded up to whole cores.

    cgroups     where control groups are mounted
    membership  the file that lists the control groups of this process
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The quota in cores of each control group that contains this process, from the innermost to the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = cgroups / "cpu" if controllers else cgroups  # version 1 names controllers, version 2 does not
        own = mounted / group.lstrip("/")  # absent in a version 1 container, which sees its own group as the root
        for folder in (own, *own.parents):
            if not folder.is_relative_to(mounted):
                break
            quota = _numbers(folder / "cpu.max")
            quota = quota or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
            if len(quota) == 2 and min(quota) > 0:  # "max" or -1 means no limit
                yield quota[0] / quota[1]


def _numbers(file: Path) -> list[int]:
    """The numbers in a file; empty if the file does not exist or contains anything else."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
