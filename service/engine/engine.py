"""Runs a model's ONNX Runtime sessions: takes a batch of canvases, returns one result per image (contract 1).

N  images in a batch;  H, W  the canvas;  h, w  an image on it
D  detections and  P  proposals of an image, which the graph pads;  boxes are x1, y1, x2, y2

A session computes all its nodes, even if only some outputs are requested. So one session holds the whole graph, and
another only the part that computes proposals. A session's number of threads is fixed when it is opened, so there is one
such pair for each number of threads that a run may use.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engine import onnx_subgraph
from service.engine.model import Model, ModelRefusedError
from service.engine.providers import CPU, CUDA, open_session, session_options
from service.images.fit import Canvas, to_original

# Each name has a type and a rank.
INPUTS = {"images": ("tensor(uint8)", 4), "sizes": ("tensor(int64)", 2)}
PROPOSALS = {
    "num_proposals": ("tensor(int64)", 1),
    "proposals": ("tensor(float)", 3),
    "objectness": ("tensor(float)", 2),
}
DETECTIONS = {
    "num_detections": ("tensor(int64)", 1),
    "boxes": ("tensor(float)", 3),
    "scores": ("tensor(float)", 2),
    "labels": ("tensor(int64)", 2),
}
OPTIONAL = {"left_out": ("tensor(float)", 1)}  # older graphs lack it

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

_NOTHING_LEFT_OUT = np.float32(0)


@dataclass(frozen=True)
class Result:
    """One image's detections and proposals, best first, in pixels of the upright image.

    boxes [D, 4], scores [D], labels [D]: empty if only proposals were requested;  proposals [P, 4], objectness [P]
    left_out       the highest score that a detection can have which the graph's limit on their number left out; 0 if
                   the limit was not reached
    all_proposals  False if the graph's limit on their number was reached, so that it may have left out some
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    proposals: Floats
    objectness: Floats
    left_out: np.float32 = _NOTHING_LEFT_OUT
    all_proposals: bool = True


class WrongOutputError(Exception):
    """The graph returned values that contract 1 excludes, such as a label that the card does not list."""


class Engine:
    """A model ready to run on one device.

    Raises ModelRefusedError if ONNX Runtime cannot load the graph, or the graph does not keep contract 1.
    """

    def __init__(
        self,
        model: Model,
        provider: str = CPU,
        threads: int | Sequence[int] = 1,
        tf32: bool = False,
        device: int = 0,
    ) -> None:
        """Opens the sessions.

        threads  the numbers of threads that a run on the CPU may use; each needs its own copy of the weights
        tf32     lets CUDA round factors to ten bits of mantissa; this is faster, but results may then depend on the
                 batch
        device   index of the GPU
        """
        self.card = model.card
        if provider == CUDA and model.card.provider == "cpu":
            log.warning("%s/%d was exported for the CPU and runs there; export it for any provider", *model.id)
            provider = CPU
        self.provider = provider
        self.thread_counts = tuple(sorted({threads} if isinstance(threads, int) else set(threads)))
        try:
            onnx_subgraph.refuse_external_data(model.graph)
            proposals_graph = onnx_subgraph.extract(model.graph, list(PROPOSALS))
            self._full, self._proposals = (
                {
                    # more than one thread is used only while no other run is expected
                    count: open_session(graph, provider, session_options(count, runs_alone=count > 1), tf32, device)
                    for count in self.thread_counts
                }
                for graph in (model.graph, proposals_graph)
            )
            self._names = check_interface(self._full[self.thread_counts[0]])
        except ValueError as error:
            raise ModelRefusedError(f"model.onnx: {error}") from error

    def run(self, canvases: Sequence[Canvas], proposals_only: bool = False, threads: int = 1) -> list[Result]:
        """One result per canvas; all canvases must have the same size. Safe for threads; releases the GIL.

        threads  upper bound; the session with the most threads within it is used, else the one with the fewest

        Raises ValueError for canvases of different sizes, WrongOutputError, and whatever ONNX Runtime raises.
        """
        images, sizes = _stack(canvases)
        count = max((count for count in self.thread_counts if count <= threads), default=self.thread_counts[0])
        sessions, names = (self._proposals, list(PROPOSALS)) if proposals_only else (self._full, self._names)
        values = sessions[count].run(names, {"images": images, "sizes": sizes})
        outputs = dict(zip(names, values, strict=True))
        for name, value in outputs.items():
            if value.shape[:1] != (len(canvases),):
                raise WrongOutputError(f"output {name} has shape {value.shape} for a batch of {len(canvases)}")
        return [_result(outputs, row, canvas, len(self.card.labels)) for row, canvas in enumerate(canvases)]

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
        largest_first = sorted(self.card.geometry.canvases, key=math.prod, reverse=True)
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
        batches = [[_blank(size)] * max(1, batch_pixels // math.prod(size)) for size in self.card.geometry.canvases]
        largest = max(batches, key=lambda batch: len(batch) * math.prod(batch[0].size))
        with ThreadPoolExecutor(runs) as pool:
            list(pool.map(lambda _: self.run(largest), range(runs)))  # raises what a run raises

    def probe(self) -> None:
        """A small run that succeeds on any working engine. Raises whatever ONNX Runtime raises."""
        self.run([_blank(min(self.card.geometry.canvases, key=math.prod))])


def check_interface(session: onnxruntime.InferenceSession) -> list[str]:
    """The names of the outputs that the engine reads.

    Raises ValueError, naming the tensor, if the graph's inputs or outputs differ from contract 1.
    """
    outputs = session.get_outputs()
    there = {output.name for output in outputs}
    wanted = DETECTIONS | PROPOSALS | {name: kind for name, kind in OPTIONAL.items() if name in there}
    _check("input", session.get_inputs(), INPUTS)
    _check("output", outputs, wanted)
    images = next(tensor.shape for tensor in session.get_inputs() if tensor.name == "images")
    if any(isinstance(side, int) for side in images[:3]) or images[3] != 3:
        raise ValueError(f"input images has shape {images}; N, H and W must be symbolic and the last 3")
    return list(wanted)


def _check(kind: str, tensors: Iterable[onnxruntime.NodeArg], wanted: dict[str, tuple[str, int]]) -> None:
    found = {tensor.name: (tensor.type, len(tensor.shape or ())) for tensor in tensors}
    for name, (dtype, rank) in wanted.items():
        if name not in found:
            raise ValueError(f"{kind} {name} is missing; the graph has {', '.join(found)}")
        if found[name] != (dtype, rank):
            raise ValueError(f"{kind} {name} is {found[name][0]} of rank {found[name][1]}, not {dtype} of rank {rank}")
    if extra := set(found) - set(wanted) if kind == "input" else set():
        raise ValueError(f"the graph has inputs that the service does not provide: {', '.join(sorted(extra))}")


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


def _result(outputs: dict[str, Any], row: int, canvas: Canvas, classes: int) -> Result:
    """Raises WrongOutputError for values that would make an answer wrong or impossible."""
    p = _rows(outputs, "num_proposals", "proposals", row)
    proposals = to_original(outputs["proposals"][row, :p], canvas)
    objectness = outputs["objectness"][row, :p]
    all_proposals = p < outputs["proposals"].shape[1]
    _check_finite(proposals=proposals, objectness=objectness)
    if "num_detections" not in outputs:
        return Result(_NO_BOXES, _NO_SCORES, _NO_LABELS, proposals, objectness, all_proposals=all_proposals)
    d = _rows(outputs, "num_detections", "boxes", row)
    boxes = to_original(outputs["boxes"][row, :d], canvas)
    scores, labels = outputs["scores"][row, :d], outputs["labels"][row, :d]
    _check_finite(boxes=boxes, scores=scores)
    if d and not (labels.min() >= 0 and labels.max() < classes):
        found = f"{labels.min()} to {labels.max()}"
        raise WrongOutputError(f"output labels has indices from {found}, but the card lists {classes} labels")
    return Result(boxes, scores, labels, proposals, objectness, _left_out(outputs, row, scores), all_proposals)


def _left_out(outputs: dict[str, Any], row: int, scores: Floats) -> np.float32:
    """`Result.left_out`, from the graph's output of this name if it has one.

    Any other graph may have left out something if it returned as many detections as it can. They come best first, so
    nothing that was left out has a higher score than the last of them.
    """
    if "left_out" not in outputs:
        return scores[-1] if 0 < len(scores) == outputs["boxes"].shape[1] else _NOTHING_LEFT_OUT
    left_out: np.float32 = outputs["left_out"][row]
    if not 0 <= left_out <= 1:
        raise WrongOutputError(f"output left_out is {left_out}, but it must be between 0 and 1")
    return left_out


def _rows(outputs: dict[str, Any], count: str, rows: str, row: int) -> int:
    """The number of real rows of an image."""
    number, most = int(outputs[count][row]), outputs[rows].shape[1]
    if not 0 <= number <= most:
        raise WrongOutputError(f"output {count} is {number}, but output {rows} has {most} rows")
    return number


def _check_finite(**outputs: Floats) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise WrongOutputError(f"output {name} has values that are not finite")


_NO_BOXES = np.empty((0, 4), dtype=np.float32)
_NO_SCORES = np.empty(0, dtype=np.float32)
_NO_LABELS = np.empty(0, dtype=np.int64)


def _blank(canvas: tuple[int, int]) -> Canvas:
    height, width = canvas
    return Canvas(np.zeros((height, width, 3), dtype=np.uint8), canvas, width, height)
