"""A batch in the engine, so that what fails fails alone: a culprit, a batch too large for the memory, a dead GPU."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.engine.engine import Result
from service.images.fit import Canvas

# What ONNX Runtime, CUDA, cuDNN, cuBLAS and C++ say when memory runs out; their exceptions have no type of their own.
NO_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad_alloc|BFCArena|ALLOC_FAILED|CUDA failure 2\b", re.IGNORECASE
)

log = logging.getLogger(__name__)


class EngineFailedError(Exception):
    """The engine failed on this very image."""


class NoMemoryLeftError(EngineFailedError):
    """There is not even memory for this image alone."""


class EngineDeadError(EngineFailedError):
    """The engine does not even run a blank image any more."""


class Ran(NamedTuple):
    """A result or a failure for each image, whether memory ran out, and why the engine is dead, if it is."""

    results: list[Result | EngineFailedError]
    out_of_memory: bool
    fatal: str | None


def run_apart(
    run: Callable[[Sequence[Canvas]], list[Result]], probe: Callable[[], None], canvases: Sequence[Canvas]
) -> Ran:
    """Runs a batch; one that fails is halved until the culprit is alone, so that only the culprit fails.

    Halving also answers a batch that is too large for the memory. After any other failure the engine is tried on a
    blank image by `probe`: a dead CUDA context fails that too, never recovers, and is not asked again.
    """
    try:
        return Ran(list(run(canvases)), False, None)
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if not out_of_memory and (fatal := _dead(probe)):
            return Ran([EngineDeadError()] * len(canvases), False, fatal)
        if len(canvases) == 1:
            log.exception("the engine failed on an image of %d x %d", canvases[0].width, canvases[0].height)
            return Ran([NoMemoryLeftError() if out_of_memory else EngineFailedError()], out_of_memory, None)
        log.warning("a batch of %d failed; halving it", len(canvases), exc_info=True)
    half = len(canvases) // 2
    first = run_apart(run, probe, canvases[:half])
    if first.fatal:
        return Ran(first.results + [EngineDeadError()] * (len(canvases) - half), False, first.fatal)
    second = run_apart(run, probe, canvases[half:])
    out_of_memory = out_of_memory or first.out_of_memory or second.out_of_memory
    return Ran(first.results + second.results, out_of_memory, second.fatal)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


def _dead(probe: Callable[[], None]) -> str | None:
    """Why the engine is dead, or None if a blank image goes through (or fails for want of memory, which may end)."""
    try:
        probe()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        log.exception("the engine fails on a blank image too")
        return f"the engine fails on every image ({type(error).__name__}); the log has the reason"
    return None
