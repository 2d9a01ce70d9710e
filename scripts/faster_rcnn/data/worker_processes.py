"""How the processes that prepare images hand over their batches, and what they need from the system.

torch passes tensors between processes through shared memory, which on Linux lies in /dev/shm. Containers have only 64
MB of it unless they are told otherwise, and a worker that finds it full is killed (SIGBUS).
"""

import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from faster_rcnn.files import size

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 4  # batches that each worker prepares in advance
USABLE = 0.9  # share of the free shared memory that is planned for; other processes may use it too


class Way(NamedTuple):
    """How batches come from the workers.

    workers, prefetch: their number, and the batches that each prepares in advance;  shared: through shared memory, or
    else through pipes;  remark: a line for the user, "" if all is as asked for.
    """

    workers: int
    prefetch: int
    shared: bool
    remark: str = ""


def choose_way(workers: int, batch_bytes: int, processes: int = 1) -> Way:
    """Chooses the fastest way that the free shared memory allows.

    batch_bytes: of one batch;  processes: that train on this machine, each with as many workers.
    """
    if not workers or not sys.platform.startswith("linux"):  # only there is the limit known, and small
        return Way(workers, PREFETCH, shared=True)
    if not _locks_work():
        return Way(
            0,
            PREFETCH,
            shared=True,
            remark=f"warning: worker processes cannot start, because {SHARED_MEMORY} cannot be written; this process "
            "prepares the images itself, which is slower; mount it, or give --workers 0",
        )
    free = shutil.disk_usage(SHARED_MEMORY).free

    def needed(prefetch: int) -> int:
        """Besides what is prepared, one batch is in use and one per worker in the making."""
        return processes * (workers * (prefetch + 1) + 1) * batch_bytes

    fitting = [prefetch for prefetch in range(PREFETCH, 0, -1) if needed(prefetch) <= USABLE * free]
    if fitting and fitting[0] == PREFETCH:
        return Way(workers, PREFETCH, shared=True)
    small = f"{SHARED_MEMORY} has {size(free)} free, and {workers * processes} worker processes need {size(needed(4))}"
    remedy = "give it more (docker run --shm-size=2g, or --ipc=host), or lower --workers or --batch-size"
    if fitting:
        effect = f"each prepares {fitting[0]} instead of {PREFETCH} batches in advance"
        return Way(workers, fitting[0], shared=True, remark=f"{small}; {effect}; to avoid this, {remedy}")
    effect = "batches pass through pipes instead, which takes more time"
    return Way(workers, PREFETCH, shared=False, remark=f"warning: {small}; {effect}; {remedy}")


def leave_signals_to_the_parent(_worker: int = 0) -> None:
    """For a new worker process: its parent ends it when it is no longer needed.

    Ctrl-C, torchrun and schedulers signal all processes of a group. The worker leaves that group, because its parent
    still needs batches to finish the iteration.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _locks_work() -> bool:
    """Whether processes can share a lock, which needs a writable /dev/shm."""
    try:
        multiprocessing.Lock()
    except OSError:
        return False
    return SHARED_MEMORY.is_dir()
