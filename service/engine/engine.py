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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.engine import ladder, resize
from service.engine.arenas import share_arena
from service.engine.buffers import fill, shared_buffers
from service.engine.few_canvases import few_canvases, padding
from service.engine.fixed_sessions import FixedSessions
from service.engine.model import Model, ModelRefusedError
from service.engine.options import EngineOptions
from service.engine.providers import CPU, CUDA
from service.engine.resize import Resizer
from service.engine.results import Result, WrongOutputError, unpack
from service.engine.sample_canvases import blank
from service.engine.sessions import Chosen, DynamicSessions, SessionFactory
from service.images.fit import Canvas, Geometry
from service.images.pending import finished

__all__ = ["Engine", "Executed", "Prepared", "Result", "WrongOutputError"]

OFFLINE = EngineOptions()
ANYTIME = nullcontext()

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """A batch that is ready to be run, once: its canvases, the session for it, and the session's inputs.

    images  uint8 [N, H, W, 3], on the device if they were resized there; None after the run
    buffer  the memory of `images`, which goes back to the engine's buffers after the run
    """

    canvases: Sequence[Canvas]
    chosen: Chosen
    images: NDArray[np.uint8] | OrtValue | None
    sizes: NDArray[np.int64]
    buffer: NDArray[np.uint8] | None = None


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
        tf32 = options.precision != "strict" or is_half
        if provider == CUDA and options.precision == "fp16" and not is_half:
            log.info("%s/%d has no float16 graph, so it runs as with PRECISION=tf32", *model.id)
        fixes_shapes = options.fixes_shapes(provider)
        if provider == CUDA:
            share_arena(device, options.gpu_memory)
        # On a CPU, a run reads the decoded image itself if it fills the canvas.
        self._buffers = shared_buffers(pins=provider == CUDA) if provider == CUDA or fixes_shapes else None
        self._fixed: FixedSessions | None = None
        self._resizer = self._chosen_resizer(model, options, device)
        try:
            factory = SessionFactory(graph, provider, tf32, device, provider == CUDA or fixes_shapes)
            self._dynamic = DynamicSessions(factory, self.thread_counts)
            if fixes_shapes:
                self.geometry = few_canvases(self.geometry)
                log.info(
                    "%s/%d: fixed shapes on %d of its %d canvases; photographs leave %.0f %% of these empty",
                    *model.id,
                    len(self.geometry.canvases),
                    len(model.card.canvases),
                    100 * padding(self.geometry),
                )
                self._fixed = FixedSessions(
                    factory, self._dynamic, self.geometry.canvases, batch_pixels, self.thread_counts
                )
        except ValueError as error:
            other = model.other_graph(provider, options.precision)
            raise ModelRefusedError(f"{other.file if other else 'model.onnx'}: {error}") from error
        self.geometry = replace(self.geometry, resize_later=self._resizer is not None)

    def _chosen_resizer(self, model: Model, options: EngineOptions, device: int) -> Resizer | None:
        if not options.resizes(self.provider):
            return None
        if not resize.suits(self.geometry.canvases):
            log.info("images for %s/%d are resized on the CPU, because its canvases have odd sides", *model.id)
            return None
        return resize.resizer(self.provider, device)

    def stop_resizing(self) -> None:
        """Leaves all resizing to the CPU. Must be called before `geometry` is used for requests."""
        self._resizer = None
        self.geometry = replace(self.geometry, resize_later=False)

    @property
    def fixes_shapes(self) -> bool:
        """Whether its sessions have fixed shapes."""
        return self._fixed is not None

    @property
    def prefers_same_shape(self) -> bool:
        """Whether a run takes longer if its shape (canvas and number of images) differs from that of the last run."""
        return self.provider == CUDA and not self.fixes_shapes

    def images_to_take(self, canvas: tuple[int, int], ready: int, most: int) -> int:
        """How many of `ready` waiting images a run should take now, so that the time per image is least.

        most  the images on this canvas that the memory for a batch allows
        """
        return self._fixed.images_to_take(canvas, ready, most) if self._fixed else min(ready, most)

    def prepare(self, canvases: Sequence[Canvas], proposals_only: bool = False, threads: int = 1) -> Prepared:
        """Copies the images into one array. Any thread may do this, also while another batch runs.

        Images whose resize is pending are resized on the device, so that the array is there.

        canvases  all of the same size
        threads   upper bound; the session with the most threads within it is used, else the one with the fewest

        Raises ValueError for canvases of different sizes, and whatever ONNX Runtime raises.
        """
        canvas, images = canvases[0].size, len(canvases)
        if self._fixed:
            chosen = self._fixed.choose(canvas, images, proposals_only, threads)
        else:
            chosen = self._dynamic.choose(images, proposals_only, threads)
        sizes = np.ones((chosen.rows, 2), dtype=np.int64)  # a row without an image holds one black pixel
        sizes[:images] = [each.image_size for each in canvases]
        if any(each.pending for each in canvases):
            if self._resizer:
                return Prepared(canvases, chosen, self._resizer.batch(canvases, chosen.rows), sizes)
            canvases = [finished(each) for each in canvases]  # they were decoded for an engine on another device
        shape = (chosen.rows, *canvas, 3)
        if self._buffers:
            buffer = self._buffers.take(math.prod(shape))
            stacked = buffer[: math.prod(shape)].reshape(shape)
            fill(stacked, canvases)
            return Prepared(canvases, chosen, stacked, sizes, buffer)
        if images == 1 and canvases[0].pixels.shape[:2] == canvas:
            return Prepared(canvases, chosen, canvases[0].pixels[np.newaxis], sizes)  # saves a copy
        stacked = np.empty(shape, dtype=np.uint8)
        fill(stacked, canvases)
        return Prepared(canvases, chosen, stacked, sizes)

    def execute(self, prepared: Prepared) -> Executed:
        """Runs the session. The caller must hold the device's turn. Releases the GIL.

        Raises ValueError if the batch was run before, and whatever ONNX Runtime raises.
        """
        images, prepared.images = prepared.images, None
        if images is None:
            raise ValueError("this batch was run before; its memory may hold another one")
        session, names, rows = prepared.chosen
        try:
            if isinstance(images, OrtValue):
                values = resize.run(session, names, images, prepared.sizes)
            else:
                values = session.run(names, {"images": images, "sizes": prepared.sizes})
        finally:
            if self._buffers and prepared.buffer is not None:
                self._buffers.give_back(prepared.buffer)
                prepared.buffer = None
        return Executed(prepared.canvases, dict(zip(names, values, strict=True)), rows)

    def results(self, executed: Executed) -> list[Result]:
        """One result per canvas. Any thread may do this. Raises WrongOutputError."""
        return unpack(executed.outputs, executed.canvases, executed.rows, len(self.card.labels))

    def run(self, canvases: Sequence[Canvas], proposals_only: bool = False, threads: int = 1) -> list[Result]:
        """`prepare`, `execute` and `results` in a row; raises what they raise. On a CPU, safe for threads.

        With fixed shapes, a batch for which there is no session is run in parts, so that it never takes the memory of a
        larger one.
        """
        rungs = self._fixed.rungs(canvases[0].size) if self._fixed else ()
        parts = [*ladder.split(len(canvases), rungs)] if rungs else [len(canvases)]
        found: list[Result] = []
        for part in parts:
            batch = canvases[len(found) : len(found) + part]
            found += self.results(self.execute(self.prepare(batch, proposals_only, threads)))
        return found

    def warm_up(self, batch_pixels: int = 0, at_once: int = 1, turn: AbstractContextManager[object] = ANYTIME) -> None:
        """Runs every session, so that no request has to wait for the slow first run.

        at_once  concurrent runs to expect on a CPU
        turn     held during each run on a device that serves other models meanwhile

        On a CPU with dynamic sessions, one run on the largest canvas is enough. The first run on any other canvas then
        takes only 1.01 to 1.02 times as long as later runs, whereas running all of them could take minutes
        (docs/results.md). At last `at_once` runs on the largest batch take place at the same time, so that the memory
        in use after the warm-up is about what it will be under load.
        On CUDA with dynamic sessions, a run on every canvas loads the kernels for it; but convolutions are prepared
        again whenever the shape changes. The largest batch within `batch_pixels` is run first, so that the arena
        allocates its largest blocks before it is fragmented.
        """
        if self._fixed and self._buffers:
            self._fixed.warm_up(self._buffers, turn)
            for line in self._fixed.times():
                log.info("%s/%d: %s", self.card.name, self.card.version, line)
        else:
            self._warm_up_dynamic(batch_pixels, turn)
        if self.provider == CPU:
            self._run_at_once(batch_pixels, at_once)

    def _warm_up_dynamic(self, batch_pixels: int, turn: AbstractContextManager[object]) -> None:
        largest_first = sorted(self.geometry.canvases, key=math.prod, reverse=True)
        for canvas in largest_first if self.provider == CUDA else largest_first[:1]:
            largest = max(1, batch_pixels // math.prod(canvas)) if self.provider == CUDA else 1
            if largest > 1:
                try:
                    with turn:
                        self.run([blank(canvas)] * largest)
                except Exception:  # probably out of memory; the queue will have to halve such batches
                    log.warning(
                        "a batch of %d images on %d x %d fails; lower BATCH_PIXELS", largest, *canvas, exc_info=True
                    )
            for count in self.thread_counts:
                for proposals_only in (False, True):
                    with turn:
                        self.run([blank(canvas)], proposals_only, count)

    def _run_at_once(self, batch_pixels: int, runs: int) -> None:
        """Runs the largest batch within `batch_pixels` in `runs` threads at the same time."""
        batches = [[blank(size)] * max(1, batch_pixels // math.prod(size)) for size in self.geometry.canvases]
        largest = max(batches, key=lambda batch: len(batch) * math.prod(batch[0].size))
        with ThreadPoolExecutor(runs) as pool:
            list(pool.map(lambda _: self.run(largest), range(runs)))  # raises what a run raises

    def probe(self) -> None:
        """A small run that succeeds on any working engine. Raises whatever ONNX Runtime raises."""
        self.run([blank(min(self.geometry.canvases, key=math.prod))])
