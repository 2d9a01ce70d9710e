"""A well-behaved client alone, beside hostile clients, and after they have left.

Each kind and number of hostile clients has a service of its own, because memory that was once used may stay. Its rounds
alternate between a quiet turn and a siege, so ratios are taken within a round.
"""

import contextlib
import io
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.comparison import with_progress
from benchmarks.load import process_usage, servers, uploads
from benchmarks.load.load_generator import ANSWERED, Generator, Target
from benchmarks.load.servers import Local, Server
from benchmarks.load.turn_figures import Number
from benchmarks.load.uploads import Upload
from benchmarks.machine import describe, other_work
from benchmarks.report import NOTHING
from benchmarks.siege.attackers import FEW, FEW_OF, KINDS, Attack, Attackers, Images, Suffered
from benchmarks.siege.good_client import GoodClient, Served
from benchmarks.tables import markdown
from benchmarks.workers import Failed
from service.engine.cores import usable_cores
from service.engine.providers import pick_provider

CLIENTS = (500, 2000)
REQUESTS = 200  # a turn
EVERY = 0.1  # seconds between the requests of the well-behaved client
WARM_UP = 3.0  # seconds with WARM_UP_CLIENTS, so that every session has taken its memory before it is measured
WARM_UP_CLIENTS = 8
SLOW = 2.0  # the service is back to normal when an answer takes at most this many times the quiet p99
LARGE_SIDE = 1000  # pixels of the noise that is drawn for slow readers: 65 kB become 1.5 MB
CLOSED = "detector_connections_closed_total"


@dataclass(frozen=True)
class Options:
    """The options of `faster-rcnn benchmark siege`.

    folder: of the model;  image: sent by the well-behaved client at several sizes;  url: of a service that is already
    running, with `path`;  kinds: of hostile clients;  clients: their numbers;  requests: of the well-behaved client in
    a turn;  rounds: of a quiet turn and a siege;  addresses: of the hostile clients, 0 if they have the good client's;
    nofile: limit of the service's file descriptors, None to leave it;  large_side: of the images that hostile clients
    send, in pixels;  out: folder for the table, or None.
    """

    folder: Path
    image: Path
    url: str | None = None
    path: str = "/detect"
    kinds: tuple[str, ...] = tuple(KINDS)
    clients: tuple[int, ...] = CLIENTS
    requests: int = REQUESTS
    rounds: int = 2
    addresses: int = 0
    nofile: int | None = None
    large_side: int = LARGE_SIDE
    seed: int = 0
    out: Path | None = None


@dataclass
class Round:
    """A quiet turn and a siege.

    growth, stays: the most memory during the siege, and the memory after it, relative to that after the quiet turn;
    cores: kept busy by the service during the siege;  attackers: by the hostile clients;  log: bytes per second that
    the service wrote to its log;  back: seconds until it was back to normal. None where unknown.
    """

    quiet: Served
    siege: Served
    suffered: Suffered
    growth: Number
    stays: Number
    cores: Number
    attackers: float
    log: Number
    back: Number

    @property
    def ratio(self) -> Number:
        """p99 during the siege relative to the quiet p99."""
        quiet, siege = self.quiet.percentile(99), self.siege.percentile(99)
        return siege / quiet if quiet and siege else None


@dataclass
class Row:
    """The rounds with one kind and number of hostile clients.  closed: connections closed by the service, by reason."""

    kind: str
    clients: int
    rounds: list[Round] = field(default_factory=list)
    closed: Counter[str] = field(default_factory=Counter)


def measure_siege(options: Options) -> None:
    """Prints the table. With `out` it also writes it to that folder, after each row."""
    warning = "" if options.url else other_work()
    images = uploads.of_one_image(options.image)
    hostile = Images(images[0].numbered(0), noise(options.large_side, options.seed))
    title = (
        f"{options.url or describe(pick_provider(), usable_cores())}\n"
        f"{options.rounds} rounds; the well-behaved client sends {options.requests} images in each turn, one every "
        f"{EVERY:g} s at most; {uploads.describe(images)}\n"
    )
    rows: list[Row] = []
    text = ""
    for kind, clients in with_progress(plan(options), "sieges"):
        rows.append(_measure(options, images, hostile, kind, clients))
        text = f"{title}{warning}\n{table(rows)}\n{notes(rows)}"
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "benchmark.md").write_text(text)
    print(text)


def plan(options: Options) -> list[tuple[str, int]]:
    """Each kind with each number of clients; FEW of those kinds that need no more."""
    return [
        (kind, n)
        for kind in options.kinds
        for n in ((min(FEW, max(options.clients)),) if kind in FEW_OF else options.clients)
    ]


def noise(side: int, seed: int) -> bytes:
    """A JPEG of side × side pixels of coarse noise: small as it is sent, and large as the drawn PNG that comes back."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=5)
    return file.getvalue()


@contextlib.contextmanager
def _server(options: Options) -> Iterator[Server]:
    if options.url is not None:
        yield servers.Remote(options.url, options.path)
        return
    prefix = () if options.nofile is None else ("sh", "-c", 'ulimit -n "$0" && exec "$@"', str(options.nofile))
    with servers.own_service(options.folder, prefix) as server:
        yield server


def _measure(options: Options, images: Sequence[Upload], hostile: Images, kind: str, clients: int) -> Row:
    with _server(options) as server:
        good = GoodClient(server.url, images, EVERY)
        warm_up(server.url, images)
        address = urlsplit(server.url)
        assert address.hostname
        attack = Attack(kind, clients, address.hostname, address.port or 80, hostile, options.addresses)
        before = closed_by_reason(server.url)
        row = Row(kind, clients)
        for _ in range(options.rounds):
            row.rounds.append(_round(server, good, attack, options.requests))
        row.closed = closed_by_reason(server.url)
        row.closed.subtract(before)
        return row


def warm_up(url: str, images: Sequence[Upload]) -> None:
    with contextlib.closing(Generator()) as generator:
        load = generator.closed(Target(url, images), WARM_UP_CLIENTS, WARM_UP)
    if not load.answered:
        raise Failed(f"{url} answers no image ({listed(load.outcomes)}); see its log")


def _round(server: Server, good: GoodClient, attack: Attack, requests: int) -> Round:
    quiet = good.turn(requests)
    calm = server.usage()
    with process_usage.Watch(server.pids) as watch, contextlib.closing(Attackers(attack)) as attackers:
        before, began, log = server.usage(), time.perf_counter(), _log_size(server)
        siege = good.turn(requests)
        seconds, after, written = time.perf_counter() - began, server.usage(), _log_size(server)
        suffered = attackers.stop()
    normal = quiet.percentile(99)
    back = None if normal is None else good.back_to_normal(SLOW * normal)
    spent = None
    if before.cpu_seconds is not None and after.cpu_seconds is not None:
        spent = (after.cpu_seconds - before.cpu_seconds) / seconds
    return Round(
        quiet,
        siege,
        suffered,
        growth=_relative(watch.peak or after.memory, calm.memory),
        stays=_relative(server.usage().memory, calm.memory),
        cores=spent,
        attackers=suffered.cpu_seconds / seconds,
        log=None if written is None or log is None else (written - log) / seconds,
        back=back,
    )


def _log_size(server: Server) -> int | None:
    return server.log_size() if isinstance(server, Local) else None


def _relative(now: int | None, before: int | None) -> Number:
    return None if now is None or not before else now / before - 1


def closed_by_reason(url: str) -> Counter[str]:
    """The connections that the service has closed so far. Empty if it does not tell."""
    parts = urlsplit(url)
    try:
        status, body = servers.get(f"{parts.scheme}://{parts.netloc}/metrics")
    except OSError:
        return Counter()
    if status != 200:
        return Counter()
    return Counter(
        {
            sample.labels["reason"]: int(sample.value)
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == CLOSED
        }
    )


def table(rows: Sequence[Row]) -> str:
    """A row for each kind and number of hostile clients. Ratios and shares are medians over the rounds."""
    head = ["beside", "N", "good answers", "p50 ms", "p99 ms", "quiet p99 ms", "× quiet", "memory grows", "stays"]
    head += ["service's cores", "their cores", "log kB/s", "back to normal s"]
    cells = []
    for row in rows:
        sent = sum(one.siege.outcomes.total() for one in row.rounds)
        answered = sum(one.siege.outcomes[ANSWERED] for one in row.rounds)
        quiet = [one.quiet.percentile(99) for one in row.rounds]
        times = [[one.siege.percentile(rank) for one in row.rounds] for rank in (50, 99)]
        figures = [*(_text(_median(values), 1e3, 1) for values in (*times, quiet))]
        figures += [_text(_median([one.ratio for one in row.rounds]), 1, 2)]
        figures += [_share(_worst([getattr(one, name) for one in row.rounds])) for name in ("growth", "stays")]
        figures += [_text(_median([getattr(one, name) for one in row.rounds]), 1, 2) for name in ("cores", "attackers")]
        figures += [_text(_median([one.log for one in row.rounds]), 1e-3, 1)]
        figures += [_text(_worst([one.back for one in row.rounds]), 1, 2)]
        cells.append([row.kind, str(row.clients), f"{answered} of {sent}", *figures])
    return markdown(head, cells)


def notes(rows: Sequence[Row]) -> str:
    """For each row, what became of the good client's other requests and of the hostile clients."""
    lines = []
    for row in rows:
        parts = []
        lost = sum((one.siege.outcomes for one in row.rounds), Counter[str]())
        del lost[ANSWERED]
        if lost:
            parts.append(f"of the good client's requests {listed(lost)}")
        suffered = [one.suffered for one in row.rounds]
        answers = sum((one.answers for one in suffered), Counter[str]())
        opened, refused, cut = (sum(getattr(one, name) for one in suffered) for name in ("opened", "refused", "cut"))
        parts.append(f"the others opened {opened} connections, {refused} more were refused, {cut} were cut")
        parts += [f"answers to them: {listed(answers)}"] if answers else []
        parts += [f"closed by reason: {listed(+row.closed)}"] if +row.closed else []
        lines.append(f"{row.kind}, {row.clients}: {'; '.join(parts)}\n")
    return "".join(lines)


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} × {what}" for what, n in counts.most_common()) or "nothing"


def _known(values: Sequence[Number]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Sequence[Number]) -> Number:
    known = _known(values)
    return statistics.median(known) if known else None


def _worst(values: Sequence[Number]) -> Number:
    return max(_known(values), default=None)


def _text(value: Number, scale: float, decimals: int) -> str:
    return NOTHING if value is None else f"{scale * value:.{decimals}f}"


def _share(value: Number) -> str:
    return NOTHING if value is None else f"{value:+.1%}"
