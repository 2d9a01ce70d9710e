"""A long load of images of random sizes: does memory stop growing, and is every image answered?"""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.comparison import with_progress
from benchmarks.load import servers, uploads
from benchmarks.load.load_generator import ANSWERED, Generator, Target
from benchmarks.load.servers import Server
from benchmarks.report import MB
from benchmarks.workers import Failed

Sample = tuple[float, int]  # seconds since the start, bytes of memory

CLIENTS = 8
SETTLED = 5.0  # minutes after which memory should no longer grow
LONG_ENOUGH = 10.0  # minutes; in a shorter soak the growth since then means nothing
GROWTH = 1.03  # factor that allocators and sampling alone can explain
TURN = 20.0  # seconds; then other sizes are sent
IMAGES = 100  # per turn


def soak(folder: Path, image: Path, url: str | None, path: str, minutes: float, seed: int, out: Path | None) -> None:
    """Prints the growth of the memory since minute five (or half the time, if that is less), and the failures.

    With `out` it writes each sample to soak.csv in that folder at once, so that an interrupted soak is not lost.
    Raises Failed if an image failed or memory grew.
    """
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    memory: list[Sample] = []
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(contextlib.closing(Generator()))
        server: Server = (
            servers.Remote(url, path) if url is not None else stack.enter_context(servers.own_service(folder))
        )
        samples = stack.enter_context(_samples(out))
        turns = max(2, round(60 * minutes / TURN))
        began = time.monotonic()
        for _ in with_progress(range(turns), "soak"):
            target = Target(server.url, uploads.any_sizes(image, IMAGES, rng))
            outcomes += generator.closed(target, CLIENTS, 60 * minutes / turns).outcomes
            if (now := server.usage().memory) is not None:
                memory.append((time.monotonic() - began, now))
                samples.write(f"{memory[-1][0]:.0f},{now},{outcomes.total()},{outcomes.total() - outcomes[ANSWERED]}\n")
                samples.flush()
    failed = {what: n for what, n in outcomes.items() if what != ANSWERED}
    listed = ", ".join(f"{n} × {what}" for what, n in failed.items()) or "none failed"
    print(f"{outcomes.total()} images of {turns * IMAGES} random sizes, {CLIENTS} clients, {minutes:g} min: {listed}")
    print(_growth(memory, minutes))
    if found := fault(failed, memory, minutes):
        raise Failed(found)


def _samples(out: Path | None) -> IO[str]:
    """The file for the samples, with its heading."""
    if out is None:
        return Path(os.devnull).open("w")
    out.mkdir(parents=True, exist_ok=True)
    file = (out / "soak.csv").open("w")
    file.write("seconds,bytes,images,failed\n")
    return file


def fault(failed: Mapping[str, int], memory: Sequence[Sample], minutes: float) -> str | None:
    """What is wrong after a soak of `minutes`, in one line, or None.  failed: counts by outcome."""
    faults = []
    if times := sum(failed.values()):
        faults.append(f"images that failed: {times}; the server's log has the reason")
    if memory and minutes >= LONG_ENOUGH:
        (moment, first), last = _settled(memory, minutes), memory[-1][1]
        if last > GROWTH * first:
            faults.append(
                f"memory has grown by {last / first - 1:.1%} since minute {moment / 60:.1f}, and {GROWTH - 1:.0%} is "
                "allowed; look for a leak"
            )
    return "; ".join(faults) or None


def _settled(memory: Sequence[Sample], minutes: float) -> Sample:
    """The sample from which memory should no longer grow."""
    settled = 60 * min(SETTLED, minutes / 2)
    return min(memory, key=lambda sample: abs(sample[0] - settled))


def _growth(memory: Sequence[Sample], minutes: float) -> str:
    if not memory:
        return "memory: unknown; the server does not report it under /metrics"
    moment, first = _settled(memory, minutes)
    last, most = memory[-1][1], max(size for _, size in memory)
    return (
        f"memory: {first / MB:.1f} MB after {moment / 60:.1f} min, {last / MB:.1f} MB at the end "
        f"({last / first - 1:+.1%}), {most / MB:.1f} MB at most"
    )
