"""Finds out why a batch failed: because of one image, because memory ran out, or because the engine is dead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.engine.engine import Result
from service.engine.out_of_memory import is_failed_plan, is_out_of_memory
from service.images.fit import Canvas

log = logging.getLogger(__name__)


class EngineFailedError(Exception):
    """The engine failed on this image, even when it was run alone."""


class NoMemoryLeftError(EngineFailedError):
    """There is not enough memory for this image, even when it is run alone."""


class EngineDeadError(EngineFailedError):
    """The engine can no longer run even a blank image."""


class Ran(NamedTuple):
    """The outcome of a batch.

    results        one result or error per image
    out_of_memory  whether memory ran out in any run
    fatal          why the engine is dead, or None if it still works
    """

    results: list[Result | EngineFailedError]
    out_of_memory: bool
    fatal: str | None


Run = Callable[[Sequence[Canvas]], list[Result]]
Probe = Callable[[], None]


def isolate(error: Exception, run: Run, probe: Probe, canvases: Sequence[Canvas]) -> Ran:
    """Runs each half of a batch on which `run` failed with `error`, until the image that causes the failure is alone.

    Halving also helps if the batch is too large for the memory. After any other failure, `probe` runs a blank image. If
    that fails too, the engine is dead: a broken CUDA context never recovers. The rest of the batch is then not run.
    A plan that cuDNN could not make counts as a lack of memory if the blank image succeeds.
    """
    out_of_memory = is_out_of_memory(error)
    if not out_of_memory and (fatal := _dead(probe)):
        return Ran([EngineDeadError()] * len(canvases), False, fatal)
    out_of_memory = out_of_memory or is_failed_plan(error)
    if len(canvases) == 1:
        size = (canvases[0].width, canvases[0].height)
        log.error("the engine failed on an image of %d x %d", *size, exc_info=error)
        return Ran([NoMemoryLeftError() if out_of_memory else EngineFailedError()], out_of_memory, None)
    log.warning("a batch of %d images failed; running each half separately", len(canvases), exc_info=error)
    half = len(canvases) // 2
    first = _run_half(run, probe, canvases[:half])
    if first.fatal:
        return Ran(first.results + [EngineDeadError()] * (len(canvases) - half), False, first.fatal)
    second = _run_half(run, probe, canvases[half:])
    out_of_memory = out_of_memory or first.out_of_memory or second.out_of_memory
    return Ran(first.results + second.results, out_of_memory, second.fatal)


def _run_half(run: Run, probe: Probe, canvases: Sequence[Canvas]) -> Ran:
    try:
        return Ran(list(run(canvases)), False, None)
    except Exception as error:
        return isolate(error, run, probe, canvases)


def _dead(probe: Callable[[], None]) -> str | None:
    """Why the engine is dead, or None if it works. Out of memory does not count, because it may pass."""
    try:
        probe()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        log.exception("the engine also fails on a blank image")
        return f"the engine fails on every image ({type(error).__name__}); the log has the reason"
    return None
