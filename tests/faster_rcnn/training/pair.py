"""Two processes that train together, as torchrun would start them, but forked: they need not import torch again."""

import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

Act = Callable[[int], object]


def in_a_pair(act: Act, folder: Path, devices: tuple[str, str] = ("cpu", "cpu")) -> list[str]:
    """Calls `act(rank)` in two processes that have joined. Returns what each has returned, or its error, as text.

    Each works in its own folder, "0" or "1" of `folder`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    results = [context.SimpleQueue() for _ in range(2)]
    pair = [
        context.Process(target=_run, args=(act, rank, devices[rank], port, folder, results[rank])) for rank in range(2)
    ]
    for one in pair:
        one.start()
    for one in pair:
        one.join(timeout=120)
        one.kill()
    return [queue.get() if not queue.empty() else "nothing" for queue in results]


def _run(act: Act, rank: int, device: str, port: int, folder: Path, result: "object") -> None:
    from faster_rcnn.training.processes import process_group, wait_for_all

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    own = folder / str(rank)
    own.mkdir(exist_ok=True)
    os.chdir(own)
    try:
        with process_group(torch.device(device)):
            try:
                text = str(act(rank))
            except (ValueError, OSError) as error:
                text = f"{type(error).__name__}: {error}"
            except BaseException:
                text = traceback.format_exc()
            result.put(text)  # type: ignore[attr-defined]
            wait_for_all()  # process 0 has the store
    except ValueError as error:  # they have not joined
        result.put(str(error))  # type: ignore[attr-defined]
        time.sleep(0.5)  # process 0 has the store, which the other one may not have read yet
    except RuntimeError:
        pass  # the other one has been killed
