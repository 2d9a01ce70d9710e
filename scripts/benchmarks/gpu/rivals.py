"""C10: the torchvision model against torchvision's own code, on the same device in the same run.

N  images in a batch.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.comparison import Entry, Measured, compare
from benchmarks.contenders import Contender, Found, Turn, torchvision_contender
from benchmarks.gpu.device import Device
from benchmarks.gpu.engines import batch_pixels, full_batch, open_engine
from benchmarks.gpu.inputs import largest, on_one_canvas
from benchmarks.gpu.outcome import Finding, Row
from benchmarks.gpu.setup import Clock, Setup
from service.engine.cores import usable_cores
from service.engine.model import Precision

BATCHES = (1, 8)  # and our largest batch
EAGER, AUTOCAST, COMPILED = "torchvision eager, fp32", "torchvision eager, autocast", "torchvision, torch.compile"
OURS = {"strict": "ours, strict", "tf32": "ours, tf32", "fp16": "ours, fp16"}
# How many times as many images a second as the other, each at its best N.
GOALS = ((OURS["strict"], EAGER, 1.2), (OURS["fp16"], EAGER, 2.5), (OURS["fp16"], AUTOCAST, 1.0))
FAST_CARDS, RATE = ("H100", "H200"), 250.0  # images per second of the float16 graph on these
LEAST_TO_COMPILE = 30.0  # seconds


def against_torchvision(setup: Setup, clock: Clock) -> Finding:
    """The contenders take turns, so other work on the machine affects all of them."""
    from benchmarks.gpu.subjects import load

    device = Device(setup.provider)
    card = setup.load(setup.torchvision).card
    canvas = largest(card.geometry)
    pixels = on_one_canvas(canvas, 1)[0].pixels
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place) / "model.pt"
        _save(load(setup.torchvision), saved)
        theirs = partial(torchvision_contender, saved, pixels, setup.provider, usable_cores())
        entries = [Entry(EAGER, theirs), Entry(OURS["strict"], partial(engine_contender, setup, "strict", canvas))]
        if not setup.rehearsal:
            entries.insert(1, Entry(AUTOCAST, partial(theirs, how="autocast")))
            entries += [Entry(OURS[one], partial(engine_contender, setup, one, canvas)) for one in ("tf32", "fp16")]
        full = max(1, batch_pixels(setup, card.canvases) // (canvas[0] * canvas[1]))
        batches = (1, 2) if setup.rehearsal else tuple(sorted({*BATCHES, full}))
        turn = max(0.05, min(1.0, clock.left() / (8 * len(entries) * len(batches))))
        results = compare(entries, batches, setup.provider, setup.times(1, 0) * turn, rounds=setup.times(3, 1))
        compiled: list[Measured] = []
        if not setup.rehearsal and clock.left() > LEAST_TO_COMPILE:  # by itself, because it may take all that is left
            entry = Entry(COMPILED, partial(theirs, how="compile"), longest=clock.left())
            compiled = compare([entry], [full], setup.provider, turn, rounds=1)
    found = Finding(rows=[_row(one, card.name, canvas) for one in (*results, *compiled)])
    _judge(setup, device, results, found)
    if not setup.rehearsal:
        found.figures[f"{COMPILED}, images/s"] = _of_compiled(compiled)
    return found


def _judge(setup: Setup, device: Device, results: list[Measured], found: Finding) -> None:
    best: dict[str, float] = {}
    for one in results:
        if one.failed:
            found.faults.append(f"{one.name}, N = {one.n}: {one.failed}")
        else:
            best[one.name] = max(best.get(one.name, 0.0), one.n / one.seconds)
    found.figures |= {f"{name}, images/s": rate for name, rate in best.items()}
    if setup.rehearsal:
        return
    for ours, other, goal in GOALS:
        if ours in best and other in best:
            times = best[ours] / best[other]
            found.figures[f"{ours} / {other}"] = times
            found.expect(times >= goal, f"{ours} is {times:.2f} times as fast as {other}; {goal} is expected")
    if any(card in device.card for card in FAST_CARDS) and OURS["fp16"] in best:
        rate = best[OURS["fp16"]]
        found.expect(rate >= RATE, f"{rate:.0f} images/s with fp16; {RATE:.0f} are expected on {device.card}")


def _of_compiled(compiled: list[Measured]) -> float | str:
    """Its figure, or why there is none; it is not judged."""
    if not compiled:
        return "not measured: too little time was left"
    return compiled[0].failed or compiled[0].n / compiled[0].seconds


def engine_contender(setup: Setup, precision: Precision, canvas: tuple[int, int]) -> Contender:
    """Our engine on N images of one canvas, in as many runs as its batches need."""
    engine = open_engine(setup, setup.torchvision, precision, few=True)
    most = full_batch(setup, engine, canvas)

    def turn(n: int, at_least: float) -> Turn:
        images = on_one_canvas(canvas, n)
        seconds: list[float] = []
        while not seconds or sum(seconds) < at_least:
            began = time.perf_counter()
            answers = [answer for at in range(0, n, most) for answer in engine.run(images[at : at + most])]
            seconds.append(time.perf_counter() - began)
        memory = Device(setup.provider).memory([os.getpid()])
        return Turn(seconds, memory, Found(len(answers[0].scores), len(answers[0].objectness)))

    return turn


def _save(model: object, file: Path) -> None:
    import torch

    torch.save(model, file)  # read by the contenders, in the same run


def _row(one: Measured, model: str, canvas: tuple[int, int]) -> Row:
    name, _, precision = one.name.partition(", ")
    seconds = one.seconds if not one.failed else None
    return Row(model, precision or name, name, one.n, canvas, seconds, memory=one.memory or None)
