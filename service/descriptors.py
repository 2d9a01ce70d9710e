"""File descriptors: raises the limit on them, and divides them between connections and everything else."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

MOST = 2**16  # more than the service can use; on some systems the limit is infinite
MOST_CONNECTIONS = 4096  # each occupies up to 15 kB
RESERVED = 64  # for probes that arrive together, the log, and loading models
OWN_PATH = Path("/proc/self/fd")
ASSUMED_OPEN = 32  # on systems that do not list a process's descriptors

log = logging.getLogger(__name__)


def raise_limit() -> int:
    """Raises this process's limit on descriptors as far as the system permits, and returns it."""
    if sys.platform == "win32":  # has no such limit
        return MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        log.info("raised the limit on file descriptors from %d to %d", soft, most)
    return most if soft == resource.RLIM_INFINITY else max(soft, most)


def for_connections(limit: int, wanted: int | None = None) -> int:
    """How many connections may be open at a time, if the process may have `limit` descriptors.

    wanted  the setting MAX_CONNECTIONS

    The number is at least 8. A third of the descriptors, but no more than RESERVED, is kept for other purposes.
    """
    already_open = len(list(OWN_PATH.iterdir())) if OWN_PATH.is_dir() else ASSUMED_OPEN
    possible = max(8, limit - already_open - min(RESERVED, limit // 3))
    connections = min(wanted or MOST_CONNECTIONS, possible)
    if connections < (wanted or MOST_CONNECTIONS):
        log.warning(
            "the limit of %d file descriptors leaves room for %d connections; raise it with ulimit -n", limit, possible
        )
    return connections
