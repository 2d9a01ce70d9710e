"""C15: the whole service under load: a real server, clients that send images of mixed sizes, a busy GPU.

A plain server, which runs each image alone, gets the same load for a shorter time.
"""

import time
from pathlib import Path

from benchmarks.gpu.device import Device
from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import EXAMPLE, Clock, Setup
from benchmarks.load import servers
from benchmarks.load.load_generator import ANSWERED, Generator, Target
from benchmarks.load.turn_figures import percentile
from benchmarks.load.uploads import of_one_image
from service.engine.cores import usable_cores

CLIENTS, SECONDS = 64, 60.0
PLAIN_SHARE = 0.25  # of the time of a model: for the plain server
BUSY = 0.85
FAST, CORES = 2000.0, 16  # images per second of our small model, on a machine with so many cores


def serving(setup: Setup, clock: Clock) -> Finding:
    """The torchvision model in float16, then our own small one."""
    found = Finding()
    folders = list(dict.fromkeys((setup.torchvision, setup.small)))
    device = Device(setup.provider)
    generator = Generator()
    try:
        for place, folder in enumerate(folders):
            seconds = min(SECONDS / len(folders), clock.left() / (len(folders) - place) - 10.0)
            if not setup.rehearsal and seconds < 5.0:
                found.faults.append(f"{folder.parent.name}: there was no time")
                continue
            seconds = setup.times(1, 0) * seconds or 1.0
            _serve(setup, folder, device, generator, (1 - PLAIN_SHARE) * seconds, found)
            _serve_plainly(setup, folder, generator, PLAIN_SHARE * seconds, found)
    finally:
        generator.close()
    return found


def _serve(setup: Setup, folder: Path, device: Device, generator: Generator, seconds: float, found: Finding) -> None:
    clients = setup.times(CLIENTS, 4)
    name = folder.parent.name
    with servers.own_service(folder, settings={"PRECISION": "fp16", "FIXED_SHAPES": "true"}) as service:
        images = of_one_image(EXAMPLE)
        generator.closed(Target(service.url, images), clients, min(1.0, seconds))  # connections, caches
        before, began = service.usage().cpu_seconds or 0.0, time.monotonic()
        with device.busy(service.pids) as busy:
            load = generator.closed(Target(service.url, images), clients, seconds)
        spent, taken = (service.usage().cpu_seconds or 0.0) - before, time.monotonic() - began
        memory = device.memory(service.pids)
    failed = {what: n for what, n in load.outcomes.items() if what != ANSWERED}
    found.figures[name] = {
        "clients": clients,
        "seconds": round(seconds, 1),
        "images/s": load.rate,
        "p50 ms": _milliseconds(percentile(load.latencies, 50)),
        "p99 ms": _milliseconds(percentile(load.latencies, 99)),
        "busy": busy.share,
        "cores": spent / taken,
        "CPU ms an image": 1e3 * spent / load.answered if load.answered else None,
        "memory": memory,
    }
    found.expect(not failed, f"{name}: {', '.join(f'{n} × {what}' for what, n in failed.items())}")
    found.expect(load.answered > 0, f"{name}: no image was answered")
    if setup.rehearsal:
        return
    share = busy.share or 0.0
    large = folder == setup.torchvision
    found.expect(not large or share >= BUSY, f"{name}: the GPU is busy for {share:.0%}; {BUSY:.0%} is expected")
    fast = large or usable_cores() < CORES or load.rate >= FAST
    found.expect(fast, f"{name}: {load.rate:.0f} images/s; {FAST:.0f} are expected with {CORES} cores")


def _serve_plainly(setup: Setup, folder: Path, generator: Generator, seconds: float, found: Finding) -> None:
    """The same load on the plain server, for comparison; it is not judged."""
    with servers.plain_server(folder, workers=1) as plain:
        load = generator.closed(Target(plain.url, of_one_image(EXAMPLE)), setup.times(CLIENTS, 4), seconds)
    found.figures[folder.parent.name] |= {
        "plain server images/s": load.rate,
        "plain server p99 ms": _milliseconds(percentile(load.latencies, 99)),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
