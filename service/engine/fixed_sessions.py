"""Sessions with fixed shapes: one for each of a few canvases and batch sizes, all with the same weights.

CUDA prepares every convolution for the shape of its input, and again whenever that shape differs from the last one,
which takes longer than many runs. A session whose shape never changes is prepared once. ONNX Runtime also computes in
advance whatever depends on shapes alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import onnxruntime

from service.engine import ladder
from service.engine.buffers import Buffers, fill
from service.engine.sample_canvases import busy
from service.engine.sessions import Chosen, DynamicSessions, SessionFactory

BATCHES_AT_ONCE = 2  # on a GPU: one is prepared while another one runs
TIMED_RUNS = 2  # after the first, which prepares the session; the faster one counts

Sides = tuple[int, int]  # height, width
Key = tuple[Sides, int, bool]  # canvas, rung, proposals only

log = logging.getLogger(__name__)


class FixedShapesError(Exception):
    """The sessions of this graph cannot have fixed shapes; the message gives the reason."""


class FixedSessions:
    """Sessions for all of `canvases`, and for the batch sizes of each that `batch_pixels` allows.

    For a batch of one image there is a session for each of `thread_counts`, for larger ones only for the first of them,
    because batches form while other runs are in progress. A batch that is larger than any session's, or on another
    canvas, is run by the dynamic sessions.

    Raises FixedShapesError if the graph does not allow it, and ValueError if ONNX Runtime cannot open a session.
    """

    def __init__(
        self,
        factory: SessionFactory,
        dynamic: DynamicSessions,
        canvases: Sequence[Sides],
        batch_pixels: int,
        thread_counts: Sequence[int],
    ) -> None:
        self._dynamic = dynamic
        self._weights = factory.weights  # must outlive the sessions
        self._sessions: dict[Key, dict[int, onnxruntime.InferenceSession]] = {}
        self._times: dict[Sides, dict[int, float]] = {}
        for canvas in canvases:
            rungs = _rungs(canvas, batch_pixels)
            self._times[canvas] = dict.fromkeys(rungs, 0.0)
            for rung in rungs:
                sizes = fixed_sizes(dynamic.input_shapes, canvas, rung)
                for proposals_only in (False, True):
                    self._sessions[canvas, rung, proposals_only] = {
                        count: factory.open(proposals_only, count, sizes)
                        for count in (thread_counts if rung == 1 else thread_counts[:1])
                    }
        self._choices: dict[tuple[Sides, int, int], int] = {}  # the batcher asks often, while it holds its lock

    def rungs(self, canvas: Sides) -> tuple[int, ...]:
        """The batch sizes for which there are sessions, smallest first."""
        return tuple(sorted(self._times.get(canvas, ())))

    def images_to_take(self, canvas: Sides, ready: int, most: int) -> int:
        """See `ladder.images_to_take`."""
        if canvas not in self._times:
            return min(ready, most)
        key = canvas, min(ready, ladder.MOST_IMAGES), min(most, ladder.MOST_IMAGES)
        if key not in self._choices:
            self._choices[key] = ladder.images_to_take(self._times[canvas], ready, most)
        return self._choices[key]

    def choose(self, canvas: Sides, images: int, proposals_only: bool, threads: int) -> Chosen:
        """The session with the smallest number of rows that has room for the images."""
        rungs = self.rungs(canvas)
        if not rungs or images > rungs[-1]:
            return self._dynamic.choose(images, proposals_only, threads)
        rung = ladder.rung_for(images, rungs)
        sessions = self._sessions[canvas, rung, proposals_only]
        count = max((count for count in sessions if count <= threads), default=min(sessions))
        return Chosen(sessions[count], self._dynamic.outputs[proposals_only], rung)

    def warm_up(self, buffers: Buffers, turn: AbstractContextManager[object]) -> None:
        """Runs and times every session, the largest first, so that the arena allocates its largest blocks first.

        Closes the sessions of rungs that fail, unless it is the first rung, and of those that are not worth it.

        buffers  from which the images are copied, as they are later
        turn     held during each run, because runs of other models would lengthen the time
        """
        buffers.reserve(BATCHES_AT_ONCE, max(_bytes(canvas, max(times)) for canvas, times in self._times.items()))
        for canvas in sorted(self._times, key=math.prod, reverse=True):
            for rung in reversed(self.rungs(canvas)):
                try:
                    self._times[canvas][rung] = self._time(canvas, rung, buffers, turn)
                except Exception:
                    if rung == 1:
                        raise
                    # probably out of memory; the memory for a batch depends on its pixels
                    log.warning(
                        "a batch of %d images on %d x %d fails; lower BATCH_PIXELS", rung, *canvas, exc_info=True
                    )
                    self._close(canvas, rung)
            for rung in self.rungs(canvas)[1:-1]:
                if not ladder.rung_pays(self._times[canvas], rung):
                    self._close(canvas, rung)
        self._choices.clear()

    def _time(self, canvas: Sides, rung: int, buffers: Buffers, turn: AbstractContextManager[object]) -> float:
        """Seconds of a run of the whole graph, with the thread count for which there are batches of all sizes."""
        buffer = buffers.take(_bytes(canvas, rung))
        images = buffer[: _bytes(canvas, rung)].reshape(rung, *canvas, 3)
        fill(images, [busy(canvas)] * rung)
        feeds = {"images": images, "sizes": np.tile(np.array(canvas, np.int64), (rung, 1))}
        seconds: list[float] = []
        try:
            for proposals_only in (True, False):
                for _, session in sorted(self._sessions[canvas, rung, proposals_only].items(), reverse=True):
                    seconds = []
                    for _ in range(1 + TIMED_RUNS):
                        with turn:
                            began = time.perf_counter()
                            session.run(self._dynamic.outputs[proposals_only], feeds)
                            seconds.append(time.perf_counter() - began)
        finally:
            buffers.give_back(buffer)
        return min(seconds[1:])

    def _close(self, canvas: Sides, rung: int) -> None:
        del self._times[canvas][rung]
        for proposals_only in (False, True):
            del self._sessions[canvas, rung, proposals_only]

    def times(self) -> Iterator[str]:
        """The times of the warm-up in words, one line for each canvas."""
        for (height, width), times in self._times.items():
            each = ", ".join(f"{rung} in {1000 * seconds:.1f} ms" for rung, seconds in sorted(times.items()))
            yield f"images per run on {height} x {width}: {each}"


def pairs(canvases: Sequence[Sides], batch_pixels: int, thread_counts: Sequence[int]) -> int:
    """The number of pairs of sessions, one for the whole graph and one for proposals, before any of them is closed."""
    return sum(len(_rungs(canvas, batch_pixels)) + len(thread_counts) - 1 for canvas in canvases)


def _rungs(canvas: Sides, batch_pixels: int) -> tuple[int, ...]:
    return ladder.rungs(max(1, batch_pixels // math.prod(canvas)))


def _bytes(canvas: Sides, rows: int) -> int:
    """Of the images of a batch."""
    return rows * math.prod(canvas) * 3


def fixed_sizes(inputs: dict[str, list[str | int | None]], canvas: Sides, rows: int) -> dict[str, int]:
    """The sizes of the dimensions N, H and W, by the names that they have in the graph.

    inputs: the shapes of the graph's inputs. Raises FixedShapesError if the names do not tell them apart.
    """
    named = [*zip(inputs["images"][:3], (rows, *canvas), strict=True), (inputs["sizes"][0], rows)]
    sizes: dict[str, int] = {}
    for name, size in named:
        if not name or isinstance(name, int):
            fault = "without names" if not name else "of a fixed size"
            raise FixedShapesError(f"its inputs have dimensions {fault}; export it again")
        if sizes.setdefault(name, size) != size:
            raise FixedShapesError(f"two different dimensions of its inputs have the name {name}; export it again")
    return sizes
