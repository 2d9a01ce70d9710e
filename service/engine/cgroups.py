"""Reads the limits of the control groups that contain this process (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders(controller: str, cgroups: Path = MOUNTED, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """The folder of each control group that contains this process and may have `controller`, innermost first.

    controller  cpu or memory
    cgroups     where control groups are mounted
    membership  the file that lists the control groups of this process

    Yields nothing on other systems.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = cgroups / controller if controllers else cgroups  # only version 1 names controllers
        own = mounted / group.lstrip("/")  # absent in a version 1 container, which sees its own group as the root
        for folder in (own, *own.parents):
            if not folder.is_relative_to(mounted):
                break
            yield folder


def numbers(file: Path) -> list[int]:
    """The numbers in a file; empty if the file does not exist or contains anything else, such as "max"."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
