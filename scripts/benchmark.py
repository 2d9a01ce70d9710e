"""Measures a published model: the graph by itself, one core from JPEG to boxes, or the service under load.

    scripts/benchmark.py graph model_store/shapes/1
    scripts/benchmark.py service                            starts a service of its own and stops it
    scripts/benchmark.py service --url http://127.0.0.1:8000

Machines are noisy: every comparison is made inside one run, its parts taken in turns, and given as a ratio. Nothing
here needs torch, so the tables come from the same installation that serves.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from service import images, store  # noqa: E402  after the path that it is found on
from service.engine import Engine, pick_provider, usable_cores  # noqa: E402

ROUNDS = 5
BATCHES = (1, 2, 4, 8)
CLIENTS = (1, 2, 4, 8, 16)
# Photographs come in many sizes: width × height of the pictures that clients send in turn.
SIZES = ((640, 480), (480, 640), (1280, 960), (800, 800), (1000, 500), (333, 500))


def jpeg(picture: Image.Image, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return file.getvalue()


def seconds_each(call: Callable[[], object], at_least: float = 0.5) -> float:
    """Seconds of one call, the mean over at least `at_least` seconds of them."""
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < at_least:
        call()
        count += 1
    return taken / count


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()


def graph(arguments: argparse.Namespace) -> None:
    model = store.load(arguments.model)
    provider = pick_provider()
    cores = usable_cores()
    print(f"{model.card.name}/{model.card.version}, {provider}, {cores} cores, {platform.processor() or 'CPU'}\n")
    with Image.open(arguments.picture or arguments.model / "example.jpg") as file:
        picture = file.convert("RGB")
    one_core(model, picture)
    batch_sizes(Engine(model, provider, cores), jpeg(picture, (640, 480)))


def one_core(model: store.Model, picture: Image.Image) -> None:
    """A 640×480 JPEG, decode to boxes, all of it on one core."""
    if not hasattr(os, "sched_setaffinity"):
        print("One core: not measured, this system cannot bind a process to a core.\n")
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        engine = Engine(model, threads=1)
        upload = jpeg(picture, (640, 480))
        canvas = images.decode(upload, engine.card.geometry)
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: images.decode(upload, engine.card.geometry),
            "detect": lambda: engine.run([canvas]),
            "proposals only": lambda: engine.run([canvas], proposals_only=True),
            "decode to boxes": lambda: engine.run([images.decode(upload, engine.card.geometry)]),
        }
        taken = in_turns(parts)
    finally:
        os.sched_setaffinity(0, allowed)
    print("One core, a 640×480 JPEG:\n")
    table(["part", "ms", "images/s"], [[name, f"{1e3 * t:.2f}", f"{1 / t:.1f}"] for name, t in taken.items()])


def batch_sizes(engine: Engine, upload: bytes) -> None:
    canvas = images.decode(upload, engine.card.geometry)
    parts: dict[str, Callable[[], object]] = {str(n): lambda n=n: engine.run([canvas] * n) for n in BATCHES}  # type: ignore[misc]  # a default argument binds n now
    taken = in_turns(parts)
    alone = taken["1"]
    print(f"Batches on {engine.provider}, canvas {canvas.size[0]}×{canvas.size[1]}:\n")
    table(
        ["N", "ms", "images/s", "against N = 1"],
        [[n, f"{1e3 * t:.2f}", f"{int(n) / t:.1f}", f"{int(n) * alone / t:.2f}"] for n, t in taken.items()],
    )


def in_turns(parts: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median over the rounds of each part's seconds; a round takes every part once."""
    for call in parts.values():
        call()
    rounds = [{name: seconds_each(call) for name, call in parts.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(one[name] for one in rounds) for name in parts}


@dataclass(frozen=True)
class Load:
    """Requests of one load: seconds of each answered one, how many failed, how long all took, and the service's own
    processor seconds."""

    latencies: list[float]
    overheads: list[float]
    failed: int
    seconds: float
    cpu_seconds: float


def service(arguments: argparse.Namespace) -> None:
    with Image.open(arguments.picture or arguments.model / "example.jpg") as file:
        uploads = [jpeg(file.convert("RGB"), size) for size in SIZES]
    with contextlib.ExitStack() as stack:
        url = arguments.url or stack.enter_context(own_service(arguments.model.parent.parent))
        ready = json.loads(get(url, "/readyz"))
        print(f"{url}, {json.dumps(ready)}; pictures of {len(SIZES)} sizes, {arguments.seconds:g} s a row\n")
        model = store.load(arguments.model)
        path = f"/detect?model={model.card.name}&version={model.card.version}"
        drive(url, path, uploads, 2, 2.0)
        bare = None if arguments.url else Bare(model, uploads)
        rows = []
        for clients in CLIENTS:
            load = drive(url, path, uploads, clients, arguments.seconds)
            if len(load.latencies) < 2:
                sys.exit(f"benchmark: {url} answered {len(load.latencies)} of {load.failed} requests; see its log")
            rate = len(load.latencies) / load.seconds
            cuts = statistics.quantiles(load.latencies, n=100)
            rows.append(
                [str(clients), f"{rate:.1f}"]
                + [f"{1e3 * cuts[place]:.1f}" for place in (49, 94, 98)]
                + [f"{1e3 * statistics.median(load.overheads):.2f}", str(load.failed)]
                + [f"{1e3 * (cpu := load.cpu_seconds / len(load.latencies)):.1f}"]
                + ([] if bare is None else [f"{cpu / bare.cpu_seconds(arguments.seconds):.2f}"])
            )
        head = ["clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "overhead ms", "failed", "CPU ms an image"]
        table(head + ([] if bare is None else ["against bare"]), rows)
        print("overhead: the median of what a client waits beyond decode, queue and inference.")
        print("CPU: the service's own processor time, which the clients beside it do not change.")
        if bare is not None:
            print("bare: the same for decode to boxes in as many threads as cores, without HTTP, beside each row.")


class Bare:
    """Decode and inference alone, in a thread a core: what the service could reach if HTTP cost nothing."""

    def __init__(self, model: store.Model, uploads: Sequence[bytes]) -> None:
        self._engine = Engine(model, pick_provider(), 1)
        self._uploads = uploads

    def cpu_seconds(self, seconds: float) -> float:
        """Processor seconds of an image, measured for `seconds`."""
        cores = usable_cores()
        spent = time.process_time()
        stop = time.perf_counter() + seconds

        def work(first: int) -> int:
            done = 0
            while time.perf_counter() < stop:
                upload = self._uploads[(first + done) % len(self._uploads)]
                self._engine.run([images.decode(upload, self._engine.card.geometry)])
                done += 1
            return done

        with ThreadPoolExecutor(cores) as threads:
            images_done = sum(threads.map(work, range(cores)))
        return (time.process_time() - spent) / images_done


def drive(url: str, path: str, uploads: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Sends pictures from `clients` connections, each one request after the other."""
    began = time.perf_counter()

    def client(first: int) -> tuple[list[float], list[float], int]:
        latencies, overheads, failed = [], [], 0
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        number = first
        while time.perf_counter() - began < seconds:
            upload = uploads[number % len(uploads)]
            number += 1
            sent = time.perf_counter()
            connection.request("POST", path, upload, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
            taken = time.perf_counter() - sent
            if response.status != 200:
                failed += 1
                continue
            timing = json.loads(body)["timing"]
            latencies.append(taken)
            overheads.append(taken - sum(timing[f"{stage}_ms"] for stage in ("decode", "queue", "inference")) / 1e3)
        connection.close()
        return latencies, overheads, failed

    spent = cpu_of(url)
    with ThreadPoolExecutor(clients) as threads:
        answers = list(threads.map(client, range(clients)))
    return Load(
        [value for latencies, _, _ in answers for value in latencies],
        [value for _, overheads, _ in answers for value in overheads],
        sum(failed for _, _, failed in answers),
        time.perf_counter() - began,
        cpu_of(url) - spent,
    )


@contextlib.contextmanager
def own_service(model_store: Path) -> Iterator[str]:
    """A service on a free port, for as long as the context lasts."""
    environment = {**os.environ, "PORT": "0", "MODEL_STORE": str(model_store)}
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            sys.exit("benchmark: the service did not start; the lines above say why")
        yield line.split(" on ")[1].split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def cpu_of(url: str) -> float:
    """Processor seconds that the service has used so far, as it says in its metrics."""
    for line in get(url, "/metrics").decode().splitlines():
        if line.startswith("process_cpu_seconds_total"):
            return float(line.split()[1])
    sys.exit(f"benchmark: {url}/metrics has no process_cpu_seconds_total; is it this service?")


def get(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", path)
    return connection.getresponse().read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run, help_text in (
        ("graph", graph, "one core from JPEG to boxes, and batch sizes on the provider"),
        ("service", service, "throughput, latency and overhead by number of clients"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.set_defaults(run=run)
        command.add_argument(
            "model", type=Path, nargs="?", default=ROOT / "model_store/shapes/1", help="default: model_store/shapes/1"
        )
        command.add_argument("--picture", type=Path, help="default: example.jpg of the model")
        if name == "service":
            command.add_argument("--url", help="a running service (default: one of its own)")
            command.add_argument("--seconds", type=float, default=6.0, help="of each row")
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    try:
        arguments.run(arguments)
    except (store.Refused, OSError) as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
