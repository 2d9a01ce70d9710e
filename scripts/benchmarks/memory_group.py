"""A control group of Linux that limits the memory of a process and its children, in version 1 or 2."""

import contextlib
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_OWN_V1 = re.compile(r"^\d+:(?:\w+,)*memory(?:,\w+)*:(.*)$", re.MULTILINE)
EMPTY = 10.0  # seconds for the system to take down the processes of a group


class NoMemoryGroupError(Exception):
    """This machine does not let this user limit memory; the message says why, in one line."""


@dataclass(frozen=True)
class MemoryGroup:
    """folder: the group's own folder;  version: 1 or 2."""

    folder: Path
    version: int

    @property
    def prefix(self) -> list[str]:
        """Words to put before a command, so that it starts inside the group."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs")]

    def peak(self) -> int:
        """The most bytes that the group has used, the page cache of its files included."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.folder / name).read_text())

    def kills(self) -> int:
        """How many processes of the group the system has killed for lack of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        found = re.search(r"^oom_kill (\d+)", (self.folder / name).read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group that may use `limit` bytes, without swap. Its processes are killed when the context ends.

    Raises NoMemoryGroupError if it cannot be made.
    """
    group = _make(limit)
    try:
        yield group
    finally:
        _remove(group)


def _make(limit: int) -> MemoryGroup:
    own = _OWN_V1.search(Path("/proc/self/cgroup").read_text()) if Path("/proc/self/cgroup").exists() else None
    if own and (ROOT / "memory").is_dir():
        group = MemoryGroup(ROOT / "memory" / f"memory-group-{uuid.uuid4().hex[:12]}", 1)
        # The limit of memory and swap together cannot be below that of memory alone, so it is set after it.
        limits = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
    elif (ROOT / "cgroup.controllers").exists():
        group = MemoryGroup(ROOT / f"memory-group-{uuid.uuid4().hex[:12]}", 2)
        limits = {"memory.max": limit, "memory.swap.max": 0}
    else:
        raise NoMemoryGroupError(f"{ROOT} has no memory controller; run on Linux with control groups")
    try:
        if group.version == 2 and "memory" not in (ROOT / "cgroup.subtree_control").read_text().split():
            (ROOT / "cgroup.subtree_control").write_text("+memory")
        group.folder.mkdir()
        for name, value in limits.items():
            if (group.folder / name).exists() or ("swap" not in name and "memsw" not in name):
                (group.folder / name).write_text(str(value))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.folder.rmdir()
        reason = str(error.strerror).lower()
        raise NoMemoryGroupError(f"cannot limit memory under {ROOT} ({reason}); run as root of the machine") from error
    return group


def _remove(group: MemoryGroup) -> None:
    deadline = time.monotonic() + EMPTY
    while time.monotonic() < deadline:
        for pid in (group.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            group.folder.rmdir()
            return
        time.sleep(0.05)
