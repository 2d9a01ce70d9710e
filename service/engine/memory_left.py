"""The memory that this process may still use, according to the machine and its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def memory_left(
    cgroups: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
    machine: Path = Path("/proc/meminfo"),
) -> int | None:
    """In bytes; the least of what the machine and each control group have left. None where this cannot be read.

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
    for line in _lines(membership):
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted = cgroups / "memory" if controllers else cgroups  # version 1 names controllers, version 2 does not
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = mounted / group.lstrip("/")  # absent in a version 1 container, which sees its own group as the root
        for folder in (own, *own.parents):
            if not folder.is_relative_to(mounted):
                break
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None and limit < 2**60:  # version 1 writes a huge number for no limit
                yield limit - used + _reclaimable(folder)


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files in a group, which the kernel drops when memory runs short."""
    found = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if line.count(" ") == 1)
    return int(found.get("total_inactive_file", found.get("inactive_file", "0")))


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdecimal() else None  # "max" means no limit


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
