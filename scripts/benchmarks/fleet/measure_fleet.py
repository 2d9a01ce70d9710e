"""What a balancer costs against the same replicas hit directly, and what drains, kills and rollouts lose under load.

The load comes from three generators in both cases: each sends to one replica, or all send to the balancer. Every
figure is a ratio within a round, because the replicas, HAProxy and the generators share the machine's cores.
"""

import json
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.comparison import with_progress
from benchmarks.fleet.replicas import ADDRESSES, Balancer, Replicas, fleet
from benchmarks.load import uploads
from benchmarks.load.load_generator import ANSWERED, Generator, Load, Target
from benchmarks.load.turn_figures import percentile
from benchmarks.load.uploads import Upload
from benchmarks.machine import describe, other_work
from benchmarks.tables import markdown
from service.engine.cores import usable_cores
from service.engine.providers import pick_provider

EVENT_AFTER = 2.0  # seconds of load before a replica is stopped or a version appears
EVENT_SECONDS = 10.0  # of load in all


@dataclass(frozen=True)
class Options:
    """The options of `faster-rcnn benchmark fleet`.

    folder: of the model;  image: to send, at several sizes;  clients: in all;  seconds: of a turn;  rounds: turns of
    each contender;  out: folder for the tables, or None.
    """

    folder: Path
    image: Path
    clients: int = 15
    seconds: float = 5.0
    rounds: int = 4
    out: Path | None = None


@dataclass
class Turn:
    """rate: answers per second;  latencies: in seconds;  outcomes: counted by status or word."""

    rate: float
    latencies: list[float]
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != ANSWERED}


class Crowd:
    """Three load generators, which send at the same time."""

    def __init__(self) -> None:
        self._generators = [Generator() for _ in ADDRESSES]

    def send(self, urls: Sequence[str], images: Sequence[Upload], clients: int, seconds: float) -> Turn:
        """A closed loop of `clients` in all. `urls`: one for each generator."""
        each = max(1, clients // len(urls))
        with ThreadPoolExecutor(len(urls)) as pool:
            loads: list[Load] = list(
                pool.map(
                    lambda generator, url: generator.closed(Target(url, images), each, seconds), self._generators, urls
                )
            )
        outcomes = sum((load.outcomes for load in loads), Counter[str]())
        return Turn(sum(load.rate for load in loads), [one for load in loads for one in load.latencies], outcomes)

    def close(self) -> None:
        for generator in self._generators:
            generator.close()


def measure_fleet(options: Options) -> None:
    """Prints the tables. With `out` it also writes them, and their figures as JSON, to that folder."""
    warning = other_work()
    images = uploads.of_one_image(options.image)
    crowd = Crowd()
    with tempfile.TemporaryDirectory() as folder, fleet(Path(folder), options.folder) as (replicas, balancer):
        try:
            cost = balancer_cost(crowd, replicas, balancer, images, options)
            events = list(with_progress(EVENTS, "events"))
            losses = {name: event(crowd, replicas, balancer, images, options) for name, event in events}
        finally:
            crowd.close()
    text = "\n\n".join(
        (
            f"{describe(pick_provider(), usable_cores())}\n{len(ADDRESSES)} replicas with one core each, "
            f"{options.clients} clients; {uploads.describe(images)}{warning and chr(10)}{warning}",
            cost_table(cost),
            loss_table(losses),
        )
    )
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "fleet.md").write_text(text + "\n")
        (options.out / "fleet.json").write_text(json.dumps(figures(cost, losses), indent=1) + "\n")


Cost = list[tuple[Turn, Turn]]  # of each round: directly, and through the balancer
Losses = dict[str, tuple[Turn, Turn]]  # of each event: before it, and during it


def balancer_cost(
    crowd: Crowd, replicas: Replicas, balancer: Balancer, images: Sequence[Upload], options: Options
) -> Cost:
    direct = [replicas.url(address) for address in ADDRESSES]
    balanced = [f"{balancer.url}/detect"] * len(ADDRESSES)
    crowd.send(direct, images, options.clients, 2.0)  # so that every session has taken its memory
    turns = []
    for number in with_progress(list(range(options.rounds)), "rounds"):
        order = (direct, balanced) if number % 2 == 0 else (balanced, direct)
        pair = {id(urls): crowd.send(urls, images, options.clients, options.seconds) for urls in order}
        turns.append((pair[id(direct)], pair[id(balanced)]))
    return turns


Event = Callable[[Crowd, Replicas, Balancer, Sequence[Upload], Options], tuple[Turn, Turn]]


def _during(
    happens: Callable[[], object],
    crowd: Crowd,
    balancer: Balancer,
    images: Sequence[Upload],
    options: Options,
) -> tuple[Turn, Turn]:
    """A quiet turn, and one in which the event happens."""
    urls = [f"{balancer.url}/detect"] * len(ADDRESSES)
    before = crowd.send(urls, images, options.clients, options.seconds)

    def wait_and_happen() -> None:
        time.sleep(EVENT_AFTER)
        happens()

    with ThreadPoolExecutor(1) as pool:
        event = pool.submit(wait_and_happen)
        during = crowd.send(urls, images, options.clients, EVENT_SECONDS)
        event.result()
    return before, during


def ended(address: str, number: signal.Signals) -> Event:
    """The event that one replica gets a signal. It is started again after that."""

    def event(
        crowd: Crowd, replicas: Replicas, balancer: Balancer, images: Sequence[Upload], options: Options
    ) -> tuple[Turn, Turn]:
        turns = _during(lambda: replicas.send(address, number), crowd, balancer, images, options)
        replicas.restart(address)
        balancer.wait_until_up(ADDRESSES)
        return turns

    return event


def rollout(
    crowd: Crowd, replicas: Replicas, balancer: Balancer, images: Sequence[Upload], options: Options
) -> tuple[Turn, Turn]:
    """A second version of the model appears in one replica's store after the other."""

    def publish() -> None:
        for address in ADDRESSES:
            _publish_next(options.folder, replicas.stores[address])
            time.sleep(2.0)

    return _during(publish, crowd, balancer, images, options)


EVENTS: list[tuple[str, Event]] = [
    ("a replica drains (SIGTERM)", ended(ADDRESSES[0], signal.SIGTERM)),
    ("a replica is killed (SIGKILL)", ended(ADDRESSES[1], signal.SIGKILL)),
    ("a new version, replica by replica", rollout),
]


def _publish_next(model: Path, store: Path) -> None:
    """The same graph as a new version, which appears at once."""
    version = int(model.name) + 1
    aside = store / f".publishing-{version}"
    aside.mkdir()
    for file in model.iterdir():
        if file.name != "model.json":
            (aside / file.name).symlink_to(file.resolve())
    card = json.loads((model / "model.json").read_text()) | {"version": version}
    (aside / "model.json").write_text(json.dumps(card))
    aside.rename(store / model.parent.name / str(version))


def cost_table(cost: Cost) -> str:
    rows = [
        [
            f"round {number}",
            f"{direct.rate:.1f}",
            f"{balanced.rate:.1f}",
            f"{balanced.rate / direct.rate:.3f}",
            f"{_added(direct, balanced) * 1e3:+.1f}",
        ]
        for number, (direct, balanced) in enumerate(cost, 1)
    ]
    medians = figures(cost, {})
    rows.append(["median", "", "", f"{medians['rate_ratio']:.3f}", f"{medians['p50_added_ms']:+.1f}"])
    return markdown(["", "directly, images/s", "balanced, images/s", "ratio", "p50 added, ms"], rows)


def loss_table(losses: Losses) -> str:
    rows = [
        [
            name,
            str(sum(during.outcomes.values())),
            ", ".join(f"{count} × {outcome}" for outcome, count in during.failed.items()) or "none",
            f"{_p99(during) / _p99(before):.2f}",
            f"{max(during.latencies):.2f}",
        ]
        for name, (before, during) in losses.items()
    ]
    return markdown(["event", "requests", "lost", "p99 relative to before", "longest, s"], rows)


def figures(cost: Cost, losses: Losses) -> dict[str, object]:
    return {
        "rate_ratio": statistics.median(balanced.rate / direct.rate for direct, balanced in cost),
        "p50_added_ms": statistics.median(_added(direct, balanced) * 1e3 for direct, balanced in cost),
        "events": {
            name: {
                "requests": sum(during.outcomes.values()),
                "lost": during.failed,
                "p99_ratio": _p99(during) / _p99(before),
                "longest_s": max(during.latencies),
            }
            for name, (before, during) in losses.items()
        },
    }


def _added(direct: Turn, balanced: Turn) -> float:
    return statistics.median(balanced.latencies) - statistics.median(direct.latencies)


def _p99(turn: Turn) -> float:
    value = percentile(turn.latencies, 99)
    assert value is not None
    return value
