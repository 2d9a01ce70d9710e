"""Opens a model as the service does, and times its runs."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.gpu.inputs import largest, one_colour
from benchmarks.gpu.setup import Setup
from service.engine.devices import BATCH_PIXELS
from service.engine.engine import Engine
from service.engine.ladder import MOST_IMAGES
from service.engine.model import Precision
from service.engine.options import EngineOptions
from service.engine.providers import CUDA

REHEARSED_BATCH = 2  # images on the largest canvas


@cache
def open_engine(setup: Setup, folder: Path, precision: Precision = "strict", few: bool = False) -> Engine:
    """The version in `folder`, warmed up, with fixed shapes. It is kept for later checks in the same process.

    few: only the two largest canvases, on which every image fits, because each canvas costs seconds of warm-up.
    Raises ModelRefusedError, and ValueError if ONNX Runtime would use the CPU instead of CUDA.
    """
    if setup.provider == CUDA:
        import onnxruntime

        onnxruntime.preload_dlls()  # the wheels of the cuda extra provide CUDA where the system has none
    model = setup.load(folder)
    if few:
        wide = largest(model.card.geometry)
        model = replace(model, card=model.card.model_copy(update={"canvases": [wide, (wide[1], wide[0])]}))
    pixels = batch_pixels(setup, model.card.canvases)
    engine = Engine(model, setup.provider, 1, EngineOptions(precision, fixed_shapes=True), 0, pixels)
    used = engine.prepare([one_colour(engine.geometry.canvases[0])]).chosen.session.get_providers()[0]
    if used != setup.provider:
        raise ValueError(f"ONNX Runtime does not start {setup.provider} here and would use {used}")
    engine.warm_up(pixels)
    return engine


def batch_pixels(setup: Setup, canvases: Sequence[tuple[int, int]]) -> int:
    """The most canvas pixels of a batch."""
    if setup.rehearsal:
        return REHEARSED_BATCH * max(math.prod(canvas) for canvas in canvases)
    return BATCH_PIXELS[setup.provider]


def full_batch(setup: Setup, engine: Engine, canvas: tuple[int, int]) -> int:
    """The most images in a batch on a canvas."""
    return max(1, min(MOST_IMAGES, batch_pixels(setup, engine.card.canvases) // math.prod(canvas)))


def median_seconds(call: Callable[[], object], runs: int) -> float:
    """The median time of a call, after one that does not count."""
    call()
    return statistics.median(timed(call) for _ in range(runs))


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
