"""C12 and C13: the device's memory stays flat over random sizes, and running out of it fails no request."""

import os
import re
import signal

from benchmarks.gpu.device import Device
from benchmarks.gpu.engines import batch_pixels, full_batch, open_engine
from benchmarks.gpu.faulty_service import MEMORY, environment, program
from benchmarks.gpu.inputs import of_random_sizes, on_one_canvas
from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import EMBEDDED, EXAMPLE, Clock, Setup
from benchmarks.load import servers
from benchmarks.load.load_generator import ANSWERED, Generator, Target
from benchmarks.load.uploads import of_one_image
from service.engine.engine import Engine

SIZES = 300  # random sizes in each half
GROWTH = 1.01
GROWTH_ON_CPU = 1.05  # of the process, which also holds the images
GPU_MEMORY = "10GB"  # so that large cards run out of it too
TOO_MUCH = 50  # times the usual budget of a batch
OUT_OF_MEMORY = re.compile(r"out of memory|failed to allocate|bad_alloc|ALLOC", re.IGNORECASE)


def flat_memory(setup: Setup, clock: Clock) -> Finding:
    """C12: memory after loading, after the largest batches, after 300 random sizes, and after 600."""
    device, pids = Device(setup.provider), [os.getpid()]
    folders = [setup.torchvision, *EMBEDDED[: setup.times(2, 0)]]
    found = Finding()
    engines = [open_engine(setup, folder) for folder in folders]
    found.figures["loaded and warmed up"] = device.memory(pids)
    for engine in engines:
        for canvas in engine.geometry.canvases:
            engine.run(on_one_canvas(canvas, full_batch(setup, engine, canvas)))
    found.figures["after the largest batches"] = device.memory(pids)
    after: list[int] = []
    for half in range(2):
        count = setup.times(SIZES, 30)
        for number in range(count):
            if clock.over():
                found.faults.append(f"there was no time for more than {half * count + number} random sizes")
                return found
            _run_one(engines[number % len(engines)], half * count + number, setup)
        after.append(device.memory(pids))
        found.figures[f"after {(half + 1) * count} random sizes"] = after[-1]
    growth, allowed = after[1] / after[0], GROWTH_ON_CPU if setup.rehearsal else GROWTH
    found.figures["second half against first"] = growth
    found.expect(growth <= allowed, f"the second half of the sizes left {growth:.3f} times the memory of the first")
    return found


def _run_one(engine: Engine, number: int, setup: Setup) -> None:
    """A batch of one to eight images of one random size."""
    canvas = of_random_sizes(engine.geometry, 1, number)[0]
    engine.run([canvas] * min(1 + number % 8, full_batch(setup, engine, canvas.size)))


def out_of_memory(setup: Setup, clock: Clock) -> Finding:
    """C13: a budget for batches that is far too large. The service halves batches, answers all, and lowers the budget.

    In the rehearsal, where the machine's memory cannot be used up, ONNX Runtime's error is raised for larger batches.
    """
    card = setup.load(setup.torchvision).card
    budget = TOO_MUCH * batch_pixels(setup, card.canvases)
    clients = setup.times(256, 16)
    settings = {
        "BATCH_PIXELS": str(budget),
        "GPU_MEMORY": GPU_MEMORY,
        "FIXED_SHAPES": "false",
        "MAX_IN_FLIGHT": "512",
        "REQUEST_TIMEOUT": "120",
        **environment(),
    }
    images = of_one_image(EXAMPLE)[:1]
    generator = Generator()
    try:
        with servers.own_service(
            setup.torchvision, settings=settings, program=program(MEMORY if setup.rehearsal else "")
        ) as service:
            if setup.rehearsal:
                service.process.send_signal(signal.SIGUSR1)
            load = generator.closed(
                Target(service.url, images), clients, min(setup.times(15, 1), max(5.0, clock.left()))
            )
            alone = generator.closed(Target(service.url, images), 1, 0.2)
            root = service.url.removesuffix("/detect")
            lowered = _metric(servers.get(f"{root}/metrics")[1].decode(), "detector_batch_budget_pixels")
            log = service.log_text()
    finally:
        generator.close()
    found = Finding(figures={"answered": load.answered, "budget": budget, "lowered to": lowered})
    found.figures["message"] = next((line.strip()[:300] for line in log.splitlines() if OUT_OF_MEMORY.search(line)), "")
    failed = {what: n for what, n in (load.outcomes + alone.outcomes).items() if what != ANSWERED}
    found.expect(not failed, f"requests failed: {', '.join(f'{n} × {what}' for what, n in failed.items())}")
    found.expect(alone.answered > 0, "no request was answered afterwards")
    found.expect(lowered is not None and lowered < budget, "memory did not run out, or the budget was not lowered")
    return found


def _metric(text: str, name: str) -> float | None:
    """The least value of a metric over its labels."""
    values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return min(map(float, values)) if values else None
