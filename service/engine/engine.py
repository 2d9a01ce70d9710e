"""ONNX Runtime: a model's sessions; a batch of canvases in, one result for each image out (contract 1).

N  images in a batch;  H, W  the canvas;  D  detections and  P  proposals, padded;  boxes are x1, y1, x2, y2.

One session holds the whole graph, the other only what proposals need: a session runs all its nodes, whichever
outputs are asked for. A session's threads are fixed when it is opened, so there is a pair for each number of threads
that a run may have. `run` may be called from several threads at once; it releases the GIL.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.engine import onnx_subgraph
from service.engine.model import Model, Refused
from service.images.fit import Canvas, to_original

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

# name: (type, rank)
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
_PROPOSAL_NAMES, _ALL_NAMES = list(PROPOSALS), list(DETECTIONS | PROPOSALS)
LOG_ERRORS_ONLY = 3
SPIN_MICROSECONDS = 100

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """One image's answer, best first, in pixels of the upright original.

    boxes [D, 4], scores [D], labels [D]: empty if only proposals were asked for;  proposals [P, 4], objectness [P]
    """

    boxes: Floats
    scores: Floats
    labels: NDArray[np.int64]
    proposals: Floats
    objectness: Floats


class Engine:
    """A model ready to run on one device.

    Raises Refused if the graph does not keep contract 1 or the provider does not start.
    """

    def __init__(
        self,
        model: Model,
        provider: str = CPU,
        threads: int | Sequence[int] = 1,
        tf32: bool = False,
        device: int = 0,
    ) -> None:
        """`threads`: how many a run on the CPU may have, one number or several to choose from at each run.

        `tf32`: lets CUDA round what it multiplies to ten bits; faster, but then answers may depend on the batch.
        `device`: which GPU.
        """
        self.card = model.card
        if provider == CUDA and model.card.provider == "cpu":
            log.warning("%s/%d was made for the CPU and runs there; publish it for any provider", *model.id)
            provider = CPU
        self.provider = provider
        self.widths = tuple(sorted({threads} if isinstance(threads, int) else set(threads)))
        try:
            onnx_subgraph.refuse_external_data(model.graph)
            proposals_alone = onnx_subgraph.extract(model.graph, list(PROPOSALS))
            self._full, self._proposals = (
                {
                    width: open_session(graph, provider, session_options(width, lone=width > 1), tf32, device)
                    for width in self.widths
                }
                for graph in (model.graph, proposals_alone)
            )
            check_interface(self._full[self.widths[0]])
        except ValueError as error:
            raise Refused(f"model.onnx: {error}") from error

    def run(self, canvases: Sequence[Canvas], proposals_only: bool = False, threads: int = 1) -> list[Result]:
        """One result for each of `canvases`, which share one canvas size. Raises what ONNX Runtime raises.

        `threads`: at most so many, if the engine has such a width; else its narrowest.
        """
        images, sizes = _stack(canvases)
        width = max((width for width in self.widths if width <= threads), default=self.widths[0])
        sessions, names = (self._proposals, _PROPOSAL_NAMES) if proposals_only else (self._full, _ALL_NAMES)
        values = sessions[width].run(names, {"images": images, "sizes": sizes})
        out = dict(zip(names, values, strict=True))
        return [_result(out, row, canvas) for row, canvas in enumerate(canvases)]

    def warm_up(self, batch_pixels: int = 0) -> None:
        """Runs every session, so that no request pays for a first time.

        On a CPU the largest canvas is enough: after it, another canvas's first run takes 1.01 to 1.02 times as long
        as its later ones, and to run them all takes minutes where an image takes seconds (scripts/RESULTS.md).
        CUDA prepares itself for every canvas; there the largest batch comes first, so that the memory pool takes its
        largest blocks before it is in pieces.
        """
        largest_first = sorted(self.card.geometry.canvases, key=math.prod, reverse=True)
        for canvas in largest_first if self.provider == CUDA else largest_first[:1]:
            largest = max(1, batch_pixels // math.prod(canvas)) if self.provider == CUDA else 1
            if largest > 1:
                try:
                    self.run([_blank(canvas)] * largest)
                except Exception:  # most likely out of memory: such batches will be halved, which costs time
                    log.warning("a batch of %d on %d x %d fails; lower BATCH_PIXELS", largest, *canvas)
            for width in self.widths:
                for proposals_only in (False, True):
                    self.run([_blank(canvas)], proposals_only, width)

    def probe(self) -> None:
        """A small run that any healthy engine survives. Raises what ONNX Runtime raises."""
        self.run([_blank(min(self.card.geometry.canvases, key=math.prod))])


def check_interface(session: onnxruntime.InferenceSession) -> None:
    """Raises ValueError, naming the tensor, if the graph's inputs and outputs are not those of contract 1."""
    _check("input", session.get_inputs(), INPUTS)
    _check("output", session.get_outputs(), DETECTIONS | PROPOSALS)
    images = session.get_inputs()[[tensor.name for tensor in session.get_inputs()].index("images")].shape
    if any(isinstance(side, int) for side in images[:3]) or images[3] != 3:
        raise ValueError(f"input images has shape {images}; N, H and W must be symbolic and the last 3")


def _check(kind: str, tensors: Iterable[onnxruntime.NodeArg], wanted: dict[str, tuple[str, int]]) -> None:
    found = {tensor.name: (tensor.type, len(tensor.shape or ())) for tensor in tensors}
    for name, (dtype, rank) in wanted.items():
        if name not in found:
            raise ValueError(f"{kind} {name} is missing; the graph has {', '.join(found)}")
        if found[name] != (dtype, rank):
            raise ValueError(f"{kind} {name} is {found[name][0]} of rank {found[name][1]}, not {dtype} of rank {rank}")
    if extra := set(found) - set(wanted) if kind == "input" else set():
        raise ValueError(f"the graph wants further inputs that nobody gives: {', '.join(sorted(extra))}")


def pick_provider(require_cuda: bool = False) -> str:
    """CUDA where there is an NVIDIA GPU and the libraries load, else the CPU.

    Raises Refused if CUDA is required and cannot be had.
    """
    if CUDA not in onnxruntime.get_available_providers():
        reason, remedy = "this onnxruntime is built without CUDA", "install onnxruntime-gpu"
    elif (devices := cuda_devices()) < 1:
        reason, remedy = "no NVIDIA GPU is visible", "check nvidia-smi, and the container's GPU reservation"
    elif not _cuda_starts():
        reason = f"CUDA or cuDNN does not load ({devices} GPU)"
        remedy = "update the driver, or install the libraries: pip install '.[cuda]'"
    else:
        return CUDA
    if require_cuda:
        raise Refused(f"REQUIRE_CUDA is set, but {reason}; {remedy}")
    log.info("running on the CPU: %s", reason)
    return CPU


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: its affinity and its control groups' quotas, not what the host has.

    cgroups: where they are mounted;  membership: the file that says which this process is in.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Cores' worth of time that each control group of this process, and each around it, may use."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = cgroups / "cpu" if controllers else cgroups  # version 1 or 2
        own = mounted / group.lstrip("/")  # not there in a container of version 1, which sees its own as the root
        for folder in (own, *own.parents):
            if not folder.is_relative_to(mounted):
                break
            quota = _numbers(folder / "cpu.max")
            quota = quota or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
            if len(quota) == 2 and min(quota) > 0:  # "max" or -1 is none
                yield quota[0] / quota[1]


def _numbers(file: Path) -> list[int]:
    """The numbers in a file: none if there is no such file or something else in it."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []


def cuda_devices() -> int:
    """How many GPUs the driver shows. Asking the driver first keeps a machine without one free of ORT's errors."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _cuda_starts() -> bool:
    """Whether a CUDA session can be made; ONNX Runtime would fall back to the CPU without a word that code can read."""
    onnxruntime.preload_dlls()  # from the wheels of the cuda extra, where a system-wide CUDA is missing
    try:
        return CUDA in open_session(_SMALLEST_MODEL, CUDA, session_options(1)).get_providers()
    except ValueError:
        return False


# y = Identity(x), one float, opset 18: the smallest model that a provider can be tried on.
_SMALLEST_MODEL = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001012"
)


def session_options(threads: int, lone: bool = False) -> onnxruntime.SessionOptions:
    """The rest are ONNX Runtime's own defaults, none of which was found to lose (scripts/RESULTS.md).

    lone: for runs beside which there are no others
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # 1.13 to 1.18 times as fast as the next level, which keeps convolutions in the file's layout
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin while they wait take cores from decoding and from other runs: with two threads on two cores
    # that others use too, a run took 1.4 to 1.8 times as long as with threads that sleep.
    # A lone run's may spin for as long as most gaps between two nodes take, but not beyond its end: it is 4 % faster,
    # and no slower beside another process, where threads that spin longer took twice as long.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(lone)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = LOG_ERRORS_ONLY
    return options


def open_session(
    graph: bytes, provider: str, options: onnxruntime.SessionOptions, tf32: bool = False, device: int = 0
) -> onnxruntime.InferenceSession:
    """A session as the service has it, on GPU `device`. Raises ValueError if ONNX Runtime cannot load the graph."""
    cuda_options = {
        "device_id": str(device),
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE costs 0.6 s at every new shape
        "use_tf32": str(int(tf32)),
    }
    providers = [(CUDA, cuda_options), CPU] if provider == CUDA else [CPU]
    try:
        with _as_file(graph) as path:
            return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ORT's exceptions share no base of their own
        raise ValueError(f"ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _as_file(graph: bytes) -> Iterator[str]:
    """The path of a file with these very bytes, in memory where the system can.

    ONNX Runtime holds the GIL while it parses bytes (90 ms for 175 MB, in which nobody is answered), and releases it
    while it reads a file. The model's own file may have changed since its hash was checked.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("model.onnx"), "wb") as file:  # noqa: PTH123  a descriptor, not a path
            file.write(graph)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(graph)
            yield str(path)


def _stack(canvases: Sequence[Canvas]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`images` and `sizes` of contract 1."""
    (H, W) = canvases[0].size
    sizes = np.array([canvas.pixels.shape[:2] for canvas in canvases], dtype=np.int64)
    if len(canvases) == 1 and canvases[0].pixels.shape[:2] == (H, W):
        return canvases[0].pixels[np.newaxis], sizes
    images = np.zeros((len(canvases), H, W, 3), dtype=np.uint8)
    for row, canvas in enumerate(canvases):
        if canvas.size != (H, W):
            raise ValueError(f"canvases {canvas.size} and {(H, W)} in one batch")
        h, w = canvas.pixels.shape[:2]
        images[row, :h, :w] = canvas.pixels
    return images, sizes


def _result(out: dict[str, Any], row: int, canvas: Canvas) -> Result:
    p = int(out["num_proposals"][row])
    proposals = to_original(out["proposals"][row, :p], canvas)
    objectness = out["objectness"][row, :p]
    if "num_detections" not in out:
        return Result(_NO_BOXES, _NO_SCORES, _NO_LABELS, proposals, objectness)
    d = int(out["num_detections"][row])
    boxes = to_original(out["boxes"][row, :d], canvas)
    return Result(boxes, out["scores"][row, :d], out["labels"][row, :d], proposals, objectness)


_NO_BOXES = np.empty((0, 4), dtype=np.float32)
_NO_SCORES = np.empty(0, dtype=np.float32)
_NO_LABELS = np.empty(0, dtype=np.int64)


def _blank(canvas: tuple[int, int]) -> Canvas:
    height, width = canvas
    return Canvas(np.zeros((height, width, 3), dtype=np.uint8), canvas, width, height)
