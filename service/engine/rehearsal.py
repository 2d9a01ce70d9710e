"""The first runs of a version on images in which something may be found, before it may answer requests.

A blank image has no detections, so it does not show whether labels, batches and unusual canvases work.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from service.engine.engine import Engine, Result, WrongOutputError
from service.engine.sample_canvases import blank, busy
from service.images.fit import Canvas, Resize
from service.images.pending import finished

STRIDE = 32  # a graph that fails on a canvas does so because its sides are not multiples of its stride
# Contract 1.2 promises 1e-4, but an int8 graph differs by more where values are rounded to the next step.
LARGEST_DIFFERENCE = 0.1
ANYTIME = nullcontext()

log = logging.getLogger(__name__)


def rehearse(engine: Engine, batch_pixels: int, turn: AbstractContextManager[object] = ANYTIME) -> None:
    """Runs one canvas of each kind, and a batch of two if the pixels of a batch may be that many.

    An engine that resizes images runs one of these, too; if that fails, it leaves them to the CPU from then on.

    turn  held during each run on a device that serves other models, because two runs at once take the memory of both

    Raises WrongOutputError, and whatever ONNX Runtime raises.
    """
    threads = max(engine.thread_counts)
    kinds: dict[tuple[int, int], tuple[int, int]] = {}
    smallest_first = sorted(engine.geometry.canvases, key=math.prod)
    for height, width in smallest_first:
        kinds.setdefault((height % STRIDE, width % STRIDE), (height, width))
    alone = {canvas: _first(engine, [busy(canvas)], threads, turn) for canvas in kinds.values()}
    smallest = smallest_first[0]
    if engine.geometry.resize_later:
        _rehearse_resize(engine, smallest, turn)
    if 2 * math.prod(smallest) > batch_pixels:
        return
    together = _first(engine, [busy(smallest), blank(smallest)], threads, turn)
    _compare(alone[smallest], together, "in a batch of two")


def _first(engine: Engine, canvases: Sequence[Canvas], threads: int, turn: AbstractContextManager[object]) -> Result:
    """The result of the first image, from one run."""
    prepared = engine.prepare(canvases, threads=threads)
    with turn:
        executed = engine.execute(prepared)
    return engine.results(executed)[0]


def _rehearse_resize(engine: Engine, canvas: tuple[int, int], turn: AbstractContextManager[object]) -> None:
    """Runs an image of half the size, resized by the engine and on the CPU."""
    height, width = canvas
    half = busy((max(1, height // 2), max(1, width // 2)))
    whole = (0.0, 0.0, float(half.width), float(half.height))
    waiting = replace(half, size=canvas, pending=Resize(height, width, whole, antialias=False))
    try:
        by_cpu, by_engine = (_first(engine, [each], 1, turn) for each in (finished(waiting), waiting))
        _compare(by_cpu, by_engine, "resized on the device")
    except Exception:  # ONNX Runtime's exceptions have no common base class
        log.exception("an image that the engine resized has no result, or a wrong one; images are resized on the CPU")
        engine.stop_resizing()


def _compare(alone: Result, otherwise: Result, how: str) -> None:
    """Raises WrongOutputError if the best scores of an image depend on how it was run."""
    for name in ("scores", "objectness"):
        best = [float(scores[0]) if len(scores) else 0.0 for scores in (getattr(alone, name), getattr(otherwise, name))]
        if abs(best[0] - best[1]) > LARGEST_DIFFERENCE:
            raise WrongOutputError(
                f"output {name} begins with {best[0]:.3f} for an image alone, and with {best[1]:.3f} for the same "
                f"image {how}"
            )
