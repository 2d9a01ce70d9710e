"""The service, the raw pipeline and a plain server under the same loads, in turns.

A round measures every contender at every load once, so that other work on the machine affects all of them; every
second round runs in reverse order. Figures are medians over the rounds; ratios are taken within a round.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.comparison import with_progress
from benchmarks.load import load_tables, process_usage, raw_pipeline, servers, turn_figures, uploads
from benchmarks.load.decode_and_detect import Found
from benchmarks.load.load_generator import Generator, Load, Target
from benchmarks.load.servers import Server
from benchmarks.load.turn_figures import Turn
from benchmarks.load.uploads import Upload
from benchmarks.machine import describe, other_work
from benchmarks.workers import Failed
from service.engine.cores import usable_cores
from service.engine.providers import pick_provider

CLIENTS = (1, 4, 16, 64)
SHARES = (0.5, 1.0, 2.0)  # of the service's capacity, offered in an open loop
WARM_UP = 2.0  # seconds
PHOTOGRAPHS = 24  # at most, from a folder
SLOW = 2.0  # a server has recovered when an answer takes at most this many times the p95 before the overload

Turns = dict[tuple[str, float], list[Turn]]


@dataclass(frozen=True)
class Options:
    """The options of `faster-rcnn benchmark service`.

    folder: of the model;  image: sent at several sizes, unless `images` is a folder of photographs;  url: of a
    service that is already running, with `path`;  clients: of the closed loop;  seconds: of each turn;  out: folder for
    the tables and the plot, or None.
    """

    folder: Path
    image: Path
    images: Path | None = None
    url: str | None = None
    path: str = "/detect"
    clients: tuple[int, ...] = CLIENTS
    seconds: float = 4.0
    rounds: int = 3
    seed: int = 0
    out: Path | None = None


def measure_service(options: Options) -> None:
    """Prints the tables. With `out` it also writes them to that folder, with a plot."""
    if options.out is not None:
        from benchmarks.load.plots import (
            plot,
        )  # fail before the measurement if matplotlib is missing, as in a serving installation
    warning = "" if options.url else other_work()
    images = sent(options)
    with contextlib.ExitStack() as stack:
        bench = Bench(options, images, stack)
        closed = bench.closed_loop()
        opened = bench.open_loop(closed)
        text = f"{bench.title()}\n{warning}\n{tables(closed, opened)}"
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmark.md").write_text(text)
        plot(closed, opened, options.out / "benchmark.png")


def sent(options: Options) -> list[Upload]:
    """The images that the clients send."""
    if options.images is None:
        return uploads.of_one_image(options.image)
    return uploads.of_folder(options.images, PHOTOGRAPHS, options.seed)


def tables(closed: Turns, opened: Turns) -> str:
    closed_parts = [
        "Closed loop: each client sends its next image once it has the answer to the last.\n",
        load_tables.closed_table(closed),
        load_tables.lone_line(closed) + load_tables.generator_line(closed) + load_tables.failure_lines(closed),
    ]
    open_parts = [
        "Open loop: images are due at random times, and latency counts from those.\n",
        load_tables.open_table(opened),
        load_tables.overload_lines(closed, opened) + load_tables.failure_lines(opened),
    ]
    return "\n".join(closed_parts + open_parts)


class Bench:
    """The contenders, started and warmed up; they are measured in turns."""

    def __init__(self, options: Options, images: Sequence[Upload], stack: contextlib.ExitStack) -> None:
        self._options, self._images = options, images
        self._generator = stack.enter_context(contextlib.closing(Generator()))
        self._expected: list[Found] = []
        self._raws: dict[str, raw_pipeline.Raw] = {}
        self._servers: list[Server] = []
        if options.url is not None:
            self._servers.append(servers.Remote(options.url, options.path))
        else:
            self._expected = raw_pipeline.expected(options.folder, images)
            fastest = raw_pipeline.best(options.folder, images, min(1.0, options.seconds))
            alone = raw_pipeline.Raw(options.folder, images, raw_pipeline.lone(usable_cores()))
            self._raws = {load_tables.RAW: fastest, load_tables.LONE: alone}
            for one in self._raws.values():
                stack.enter_context(contextlib.closing(one))
            self._servers.append(stack.enter_context(servers.own_service(options.folder)))
            for workers in (1, 2):
                self._servers.append(stack.enter_context(servers.plain_server(options.folder, workers)))
        for server in self._servers:
            self._warm_up(server)

    def title(self) -> str:
        """The heading: what is measured, on which machine, with which images."""
        options = self._options
        where = options.url or f"{options.folder.parent.name}/{options.folder.name}"
        lines = [f"{where}; {options.rounds} rounds of {options.seconds:g} s; {uploads.describe(self._images)}"]
        if options.url is None:
            lines.insert(0, describe(pick_provider(), usable_cores()))
            lines.append(f"raw pipeline: {self._raws[load_tables.RAW].arrangement} was the fastest arrangement")
        return "".join(f"{line}\n" for line in lines)

    def closed_loop(self) -> Turns:
        """Every contender at every number of clients, ordered by contender, then by clients."""
        options = self._options
        calls: dict[tuple[str, float], Callable[[int], Turn]] = {}
        for clients in options.clients:
            for server in self._servers:
                calls[server.name, clients] = partial(self._closed, server, clients)
            for name, pipeline in self._raws.items():
                if name == load_tables.RAW or clients == 1:
                    calls[name, clients] = partial(self._raw, pipeline)
        return self._in_turns(calls, "closed loop")

    def open_loop(self, closed: Turns) -> Turns:
        """Every server at SHARES of the first one's capacity; at the highest share, also the time until it recovers."""
        capacity = max(_rate(turns) for (name, _), turns in closed.items() if name == self._servers[0].name)
        if not capacity:
            raise Failed(f"no image was answered within {self._options.seconds:g} s; raise --seconds")
        calls: dict[tuple[str, float], Callable[[int], Turn]] = {}
        for share in SHARES:
            for server in self._servers:
                normal = None
                if share == max(SHARES):
                    normal = SLOW * max(turn.p95 or 0.0 for turn in closed[server.name, min(self._options.clients)])
                calls[server.name, share * capacity] = partial(self._open, server, share * capacity, normal)
        return self._in_turns(calls, "open loop")

    def _in_turns(self, calls: dict[tuple[str, float], Callable[[int], Turn]], what: str) -> Turns:
        names = list(dict.fromkeys(name for name, _ in calls))
        turns: Turns = {key: [] for key in sorted(calls, key=lambda key: names.index(key[0]))}
        order = [
            (round_, key)
            for round_ in range(self._options.rounds)
            for key in (list(calls) if round_ % 2 == 0 else reversed(calls))
        ]
        for round_, key in with_progress(order, what):
            turns[key].append(calls[key](round_))
        return turns

    def _raw(self, pipeline: raw_pipeline.Raw, _: int) -> Turn:
        return turn_figures.of_raw(pipeline.measure(self._options.seconds))

    def _closed(self, server: Server, clients: int, _: int) -> Turn:
        return self._watched(server, lambda target: self._generator.closed(target, clients, self._options.seconds))

    def _open(self, server: Server, rate: float, normal: float | None, round_: int) -> Turn:
        seed = self._options.seed + round_
        return self._watched(
            server, lambda target: self._generator.open(target, rate, self._options.seconds, seed, normal)
        )

    def _watched(self, server: Server, drive: Callable[[Target], Load]) -> Turn:
        before, began = server.usage(), time.perf_counter()
        with process_usage.Watch(server.pids) as watch:
            load = drive(Target(server.url, self._images, self._expected))
        return turn_figures.of_load(load, before, watch.peak, server.usage(), time.perf_counter() - began)

    def _warm_up(self, server: Server) -> None:
        load = self._generator.closed(Target(server.url, self._images), 4, min(WARM_UP, self._options.seconds))
        if not load.answered:
            outcomes = ", ".join(f"{n} × {what}" for what, n in load.outcomes.items()) or "no answer"
            raise Failed(f"{server.url} answers no image ({outcomes}); see its log")


def _rate(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.rate for turn in turns)
