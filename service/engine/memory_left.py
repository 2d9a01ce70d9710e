"""The memory that this process may still use, according to the machine and its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from service.engine.cgroups import MEMBERSHIP, MOUNTED, folders, numbers

LIMITS_AND_USES = (
    ("memory.max", "memory.current"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
)


def memory_left(
    cgroups: Path = MOUNTED,
    membership: Path = MEMBERSHIP,
    machine: Path = Path("/proc/meminfo"),
) -> int | None:
    """The least of what the machine and each control group have left, in bytes. None if this cannot be read.

    cgroups     where control groups are mounted
    membership  the file that lists the control groups of this process
    machine     the file with the machine's memory
    """
    left = [*_left_on_the_machine(machine), *_left_in_groups(cgroups, membership)]
    return max(0, min(left)) if left else None


def _left_on_the_machine(machine: Path) -> Iterator[int]:
    for line in _lines(machine):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_in_groups(cgroups: Path, membership: Path) -> Iterator[int]:
    for folder in folders("memory", cgroups, membership):
        for limit_file, used_file in LIMITS_AND_USES:
            limit, used = numbers(folder / limit_file), numbers(folder / used_file)
            if limit and used and limit[0] < 2**60:  # version 1 writes a huge number for no limit
                yield limit[0] - used[0] + _reclaimable(folder)


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files in a group, which the kernel drops when memory runs short."""
    found = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if line.count(" ") == 1)
    return int(found.get("total_inactive_file", found.get("inactive_file", "0")))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
