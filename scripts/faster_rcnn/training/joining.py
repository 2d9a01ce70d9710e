"""A store for the processes of one start of a run, without the values of the start before.

torchrun may keep its store when it restarts the processes. A process that read there where another one listened before
the restart would look for it in vain (`torch.distributed` 2.15 does so).
"""

import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

PAUSE = 0.02  # seconds between two looks at the store


def join(patience: timedelta) -> tuple[dist.Store, int, int]:
    """Waits until all processes have started. Returns their common store, the rank of this one, and their number.

    Raises TimeoutError, naming a process that has not come.
    """
    store, rank, size = next(rendezvous("env://", timeout=patience))
    until = time.monotonic() + patience.total_seconds()
    name = _invite(store, size, until) if rank == 0 else _accept(store, rank, until)
    return dist.PrefixStore(name, store), rank, size


def told_by_all(store: dist.Store, rank: int, size: int, value: str) -> tuple[str, ...]:
    """The values of all processes, before they have a process group."""
    store.set(f"value/{rank}", value)
    return tuple(store.get(f"value/{number}").decode() for number in range(size))


def _invite(store: dist.Store, size: int, until: float) -> str:
    """Tells the name of a new store to every process that asks, until all have answered."""
    name = uuid4().hex
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{name}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"asks/{rank}"]):  # perhaps one of an earlier start, which never answers
                store.set(f"told/{store.get(f'asks/{rank}').decode()}", name)
        _pause(until, f"process {min(missing, default=0)}")
    return name


def _accept(store: dist.Store, rank: int, until: float) -> str:
    own = uuid4().hex
    store.set(f"asks/{rank}", own)
    while not store.check([f"told/{own}"]):
        _pause(until, "process 0")
    name = store.get(f"told/{own}").decode()
    store.set(f"{name}/{rank}", "here")
    return str(name)


def _pause(until: float, missing: str) -> None:
    if time.monotonic() > until:
        raise TimeoutError(f"{missing} of this run has not started; start all processes, and check their network")
    time.sleep(PAUSE)
