"""The worst images at once, beside a client with small ones, with the service in a limited amount of memory."""

import asyncio
import itertools
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from benchmarks.load import process_usage, servers, uploads
from benchmarks.load.http_connection import Answer, connect
from benchmarks.load.servers import Local
from benchmarks.machine import describe, other_work
from benchmarks.memory_group import MemoryGroup, NoMemoryGroupError, memory_group
from benchmarks.report import MB, NOTHING
from benchmarks.siege.good_client import GoodClient, Served
from benchmarks.siege.measure_siege import listed, warm_up
from benchmarks.siege.worst_images import SIDE, WORST
from benchmarks.tables import markdown
from benchmarks.workers import Failed, call_aside
from service.engine.cores import usable_cores
from service.engine.providers import pick_provider

EVERY = 0.1  # seconds between the small images
QUIET = 50  # small images before the others
PATIENCE = 120.0  # seconds for one answer
CORES = 2
RIGHT = "200"


@dataclass(frozen=True)
class Options:
    """The options of `faster-rcnn benchmark worst`.

    folder: of the model;  image: the small one;  memory: limit in bytes;  images: sent at once, of all kinds in turn;
    side: of them in pixels;  rounds: how often;  out: folder for the table, or None.
    """

    folder: Path
    image: Path
    memory: int
    images: int = 64
    side: int = SIDE
    rounds: int = 1
    out: Path | None = None


def measure_worst(options: Options) -> None:
    """Prints the figures. With `out` it also writes them to that folder. Raises Failed if memory cannot be limited."""
    warning = other_work()
    worst = {kind: make(options.side) for kind, make in WORST.items()}
    small = uploads.of_one_image(options.image)
    try:
        with memory_group(options.memory) as group, servers.own_service(options.folder, _prefix(group)) as server:
            text = _figures(options, group, server, worst, GoodClient(server.url, small, EVERY))
    except NoMemoryGroupError as error:
        raise Failed(str(error)) from error
    text = f"{describe(pick_provider(), min(CORES, usable_cores()))}\n{warning}\n{text}"
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmark.md").write_text(text)


def _prefix(group: MemoryGroup) -> list[str]:
    cores = ["taskset", "-c", f"0-{CORES - 1}"] if usable_cores() > CORES else []
    return [*group.prefix, *cores]


def _figures(options: Options, group: MemoryGroup, server: Local, worst: dict[str, bytes], client: GoodClient) -> str:
    warm_up(server.url, client.images)
    quiet = client.turn(QUIET)
    began, outcomes, beside = time.perf_counter(), Counter[tuple[str, str]](), Served()
    with process_usage.Watch(server.pids) as watch, ThreadPoolExecutor(1) as pool:
        for number in range(options.rounds):
            patience = PATIENCE + 60.0
            salvo = Salvo(server.url, worst, options.images, number * options.images, options.side)
            sent = pool.submit(call_aside, send_all, salvo, seconds=patience)
            while not sent.done():
                beside.add(client.turn(10))
            outcomes += sent.result()
    rows = []
    for kind in worst:
        own = Counter({what: n for (its_kind, what), n in outcomes.items() if its_kind == kind})
        others = own.copy()
        del others[RIGHT]
        rows.append([kind, str(own.total()), str(own[RIGHT]), listed(others) if others else NOTHING])
    after = client.turn(10)
    lines = [
        f"{options.images} images at once, drawn, in {options.rounds} rounds; {time.perf_counter() - began:.0f} s\n",
        markdown(["", "sent", "right", "others"], rows),
        f"memory: limit {options.memory / MB:.0f} MB, the group used {group.peak() / MB:.0f} MB at most, the process "
        f"{(watch.peak or 0) / MB:.0f} MB; killed {group.kills()} times",
        f"small images alone: {_summary(quiet)}",
        f"small images beside them: {_summary(beside)}",
        f"small images after them: {_summary(after)}",
    ]
    return "\n".join(lines) + "\n"


def _summary(served: Served) -> str:
    p50, p99 = (served.percentile(rank) for rank in (50, 99))
    times = "" if p50 is None or p99 is None else f"; p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms"
    return f"{listed(served.outcomes)}{times}"


class Salvo(NamedTuple):
    """`images` images of side × side pixels, of the kinds in `worst` in turn, numbered from `first_number`."""

    url: str
    worst: dict[str, bytes]
    images: int
    first_number: int
    side: int


def send_all(salvo: Salvo) -> Counter[tuple[str, str]]:
    """Sends all images at once, each on a connection of its own. Returns the outcomes by kind."""
    return asyncio.run(_send_all(salvo))


async def _send_all(salvo: Salvo) -> Counter[tuple[str, str]]:
    kinds = list(itertools.islice(itertools.cycle(salvo.worst), salvo.images))
    images = (salvo.worst[kind] + b"\0%d" % (salvo.first_number + n) for n, kind in enumerate(kinds))
    outcomes = await asyncio.gather(*(_send(salvo.url, image, salvo.side) for image in images))
    return Counter(zip(kinds, outcomes, strict=True))


async def _send(url: str, image: bytes, side: int) -> str:
    """The outcome: RIGHT if the answer is the drawn image."""
    address = urlsplit(url)
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/octet-stream\r\n"
        f"Accept: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(PATIENCE):
            connection = await connect(address.hostname or "", address.port or 80, tls=False)
            try:
                return judge(await connection.send(head.encode() + image), side)
            finally:
                connection.close()
    except TimeoutError:
        return f"no answer in {PATIENCE:.0f} s"
    except OSError:
        return "connection refused or lost"
    except ValueError:
        return "not understood"


def judge(answer: Answer, side: int) -> str:
    """RIGHT for a PNG of side × side pixels, else the status with the reason of the problem."""
    if answer.status == 200:
        size = struct.unpack(">II", answer.body[16:24]) if answer.body.startswith(b"\x89PNG") else None
        return RIGHT if size == (side, side) else "wrong image"
    try:
        return f"{answer.status} {orjson.loads(answer.body)['reason']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.status)
