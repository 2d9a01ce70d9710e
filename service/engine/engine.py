"""Runs a model's ONNX Runtime sessions: takes a batch of canvases, returns one result per image (contract 1).

N  images in a batch;  H, W  the canvas;  h, w  an image on it

A run has three parts, so that different threads can do them: `prepare` copies the images into one array, `execute` runs
the session, and `results` reads its outputs. Only `execute` needs the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine import onnx_subgraph
from service.engine.interface import PROPOSALS
from service.engine.model import Model, ModelRefusedError
from service.engine.options import EngineOptions
from service.engine.providers import CPU, CUDA
from service.engine.results import Result, WrongOutputError, unpack
from service.engine.sessions import Chosen, DynamicSessions, Graphs, Sessions, opener
from service.images.fit import Canvas, Geometry

__all__ = ["Engine", "Executed", "Prepared", "Result", "WrongOutputError"]

OFFLINE = EngineOptions()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A batch that is ready to be run once: its canvases, the session for it, and the session's inputs."""

    canvases: Sequence[Canvas]
    chosen: Chosen
    images: NDArray[np.uint8]
    sizes: NDArray[np.int64]


@dataclass(frozen=True)
class Executed:
    """A batch after its run: its canvases, and the session's outputs by name, each with `rows` rows."""

    canvases: Sequence[Canvas]
    outputs: dict[str, Any]
    rows: int


class Engine:
    """A model ready to run on one device.

    geometry  how images must be prepared for it. Its canvases are all that the model declares, or a few of them
              (contract 1.2 says that the canvas does not matter)

    Raises ModelRefusedError if ONNX Runtime cannot load the graph, or the graph does not keep contract 1.
    """

    def __init__(
        self,
        model: Model,
        provider: str = CPU,
        threads: int | Sequence[int] = 1,
        options: EngineOptions = OFFLINE,
        device: int = 0,
        batch_pixels: int = 0,
    ) -> None:
        """Opens the sessions.

        threads       the numbers of threads that a run on the CPU may use; each needs its own copy of the weights
        device        index of the GPU
        batch_pixels  the most canvas pixels of a batch with more than one image; sessions with fixed shapes need it
        """
        self.card = model.card
        if provider == CUDA and model.card.provider == "cpu":
            log.warning("%s/%d was exported for the CPU and runs there; export it for any provider", *model.id)
            provider = CPU
        self.provider = provider
        self.thread_counts = tuple(sorted({threads} if isinstance(threads, int) else set(threads)))
        self.geometry: Geometry = model.card.geometry
        graph = model.graph_for(provider, options.precision)
        # Without TF32, cuDNN computes convolutions of float16 without tensor cores too, many times as slowly.
        is_half = model.precision_for(provider, options.precision) == "fp16"
        open_graph = opener(provider, options.precision != "strict" or is_half, device)
        try:
            onnx_subgraph.refuse_external_data(graph)
            graphs = Graphs(graph, onnx_subgraph.extract(graph, list(PROPOSALS)))
            self._sessions: Sessions = DynamicSessions(graphs, self.thread_counts, open_graph)
        except ValueError as error:
            raise ModelRefusedError(f"model.onnx: {error}") from error

    def images_to_take(self, canvas: tuple[int, int], ready: int, most: int) -> int:
        """How many of `ready` waiting images a run should take now, so that the time per image is least.

        most  the images on this canvas that the memory for a batch allows
        """
        return min(ready, most)

    @property
    def prefers_same_shape(self) -> bool:
        """Whether a run is slow if its canvas or its number of images differs from the run before.

        cuDNN then prepares every convolution again. Sessions with fixed shapes are prepared once.
        """
        return self.provider == CUDA and isinstance(self._sessions, DynamicSessions)

    def prepare(self, canvases: Sequence[Canvas], proposals_only: bool = False, threads: int = 1) -> Prepared:
        """Copies the images into one array. Any thread may do this, also while another batch runs.

        canvases  all of the same size
        threads   upper bound; the session with the most threads within it is used, else the one with the fewest

        Raises ValueError for canvases of different sizes.
        """
        chosen = self._sessions.choose(canvases[0].size, len(canvases), proposals_only, threads)
        images, sizes = _stack(canvases)
        return Prepared(canvases, chosen, images, sizes)

    def execute(self, prepared: Prepared) -> Executed:
        """Runs the session. The caller must hold the device's turn. Releases the GIL.

        Raises whatever ONNX Runtime raises.
        """
        session, names, rows = prepared.chosen
        values = session.run(names, {"images": prepared.images, "sizes": prepared.sizes})
        return Executed(prepared.canvases, dict(zip(names, values, strict=True)), rows)

    def results(self, executed: Executed) -> list[Result]:
        """One result per canvas. Any thread may do this. Raises WrongOutputError."""
        return unpack(executed.outputs, executed.canvases, executed.rows, len(self.card.labels))

    def run(self, canvases: Sequence[Canvas], proposals_only: bool = False, threads: int = 1) -> list[Result]:
        """`prepare`, `execute` and `results` in a row; raises what they raise. On a CPU, safe for threads."""
        return self.results(self.execute(self.prepare(canvases, proposals_only, threads)))

    def warm_up(self, batch_pixels: int = 0, at_once: int = 1) -> None:
        """Runs every session, so that no request has to wait for the slow first run.

        at_once  concurrent runs to expect on a CPU

        On a CPU, one run on the largest canvas is enough. The first run on any other canvas then takes only 1.01
        to 1.02 times as long as later runs, whereas running all of them could take minutes (docs/results.md). At last
        `at_once` runs on the largest batch take place at the same time, so that the memory in use after the warm-up is
        about what it will be under load.
        CUDA needs a first run on every canvas. The largest batch within `batch_pixels` is run first, so that the
        memory pool allocates its largest blocks before it is fragmented.
        """
        largest_first = sorted(self.geometry.canvases, key=math.prod, reverse=True)
        for canvas in largest_first if self.provider == CUDA else largest_first[:1]:
            largest = max(1, batch_pixels // math.prod(canvas)) if self.provider == CUDA else 1
            if largest > 1:
                try:
                    self.run([_blank(canvas)] * largest)
                except Exception:  # probably out of memory; the queue will have to halve such batches
                    log.warning("a batch of %d images on %d x %d fails; lower BATCH_PIXELS", largest, *canvas)
            for count in self.thread_counts:
                for proposals_only in (False, True):
                    self.run([_blank(canvas)], proposals_only, count)
        if self.provider == CPU:
            self._run_at_once(batch_pixels, at_once)

    def _run_at_once(self, batch_pixels: int, runs: int) -> None:
        """Runs the largest batch within `batch_pixels` in `runs` threads at the same time."""
        batches = [[_blank(size)] * max(1, batch_pixels // math.prod(size)) for size in self.geometry.canvases]
        largest = max(batches, key=lambda batch: len(batch) * math.prod(batch[0].size))
        with ThreadPoolExecutor(runs) as pool:
            list(pool.map(lambda _: self.run(largest), range(runs)))  # raises what a run raises

    def probe(self) -> None:
        """A small run that succeeds on any working engine. Raises whatever ONNX Runtime raises."""
        self.run([_blank(min(self.geometry.canvases, key=math.prod))])


def _stack(canvases: Sequence[Canvas]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The graph's inputs `images` [N, H, W, 3] and `sizes` [N, 2]."""
    (H, W) = canvases[0].size
    sizes = np.array([canvas.pixels.shape[:2] for canvas in canvases], dtype=np.int64)
    if len(canvases) == 1 and canvases[0].pixels.shape[:2] == (H, W):
        return canvases[0].pixels[np.newaxis], sizes  # saves a copy
    images = np.zeros((len(canvases), H, W, 3), dtype=np.uint8)
    for row, canvas in enumerate(canvases):
        if canvas.size != (H, W):
            raise ValueError(f"canvases {canvas.size} and {(H, W)} in one batch")
        h, w = canvas.pixels.shape[:2]
        images[row, :h, :w] = canvas.pixels
    return images, sizes


def _blank(canvas: tuple[int, int]) -> Canvas:
    height, width = canvas
    return Canvas(np.zeros((height, width, 3), dtype=np.uint8), canvas, width, height)
