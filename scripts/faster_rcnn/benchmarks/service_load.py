"""The service under load: throughput, latency and overhead by number of clients."""

import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from faster_rcnn.benchmarks.pictures import jpeg, open_rgb
from faster_rcnn.benchmarks.tables import markdown
from service import images, store
from service.engine import Engine, pick_provider, usable_cores

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = (1, 2, 4, 8, 16)
# Photographs come in many sizes: width × height of the pictures that clients send in turn.
SIZES = ((640, 480), (480, 640), (1280, 960), (800, 800), (1000, 500), (333, 500))


@dataclass(frozen=True)
class Load:
    """Requests of one load: seconds of each answered one, how many failed, how long all took, and the service's own
    processor seconds."""

    latencies: list[float]
    overheads: list[float]
    failed: int
    seconds: float
    cpu_seconds: float


def measure_service(folder: Path, picture: Path, url: str | None, seconds: float) -> None:
    """Prints what the service does with the model in `folder` under load; without `url`, a service of its own."""
    own = url is None
    uploads = [jpeg(open_rgb(picture), size) for size in SIZES]
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(own_service(folder.parent.parent))
        ready = json.loads(get(url, "/readyz"))
        print(f"{url}, {json.dumps(ready)}; pictures of {len(SIZES)} sizes, {seconds:g} s a row\n")
        model = store.load(folder)
        path = f"/detect?model={model.card.name}&version={model.card.version}"
        drive(url, path, uploads, 2, 2.0)
        bare = Bare(model, uploads) if own else None
        rows = []
        for clients in CLIENTS:
            load = drive(url, path, uploads, clients, seconds)
            if len(load.latencies) < 2:
                sys.exit(f"benchmark: {url} answered {len(load.latencies)} of {load.failed} requests; see its log")
            rate = len(load.latencies) / load.seconds
            cuts = statistics.quantiles(load.latencies, n=100)
            rows.append(
                [str(clients), f"{rate:.1f}"]
                + [f"{1e3 * cuts[place]:.1f}" for place in (49, 94, 98)]
                + [f"{1e3 * statistics.median(load.overheads):.2f}", str(load.failed)]
                + [f"{1e3 * (cpu := load.cpu_seconds / len(load.latencies)):.1f}"]
                + ([] if bare is None else [f"{cpu / bare.cpu_seconds(seconds):.2f}"])
            )
        head = ["clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "overhead ms", "failed", "CPU ms an image"]
        print(markdown(head + ([] if bare is None else ["against bare"]), rows))
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
