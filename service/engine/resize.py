"""Resizes images on the device that runs the detector, instead of on the CPU's cores (contract 2.5).

Each image runs through the graph `resize.onnx` (written by scripts/faster_rcnn/graph/resize_graph.py), which resizes
along the rows and then along the columns by a matrix product, and writes the result to the image's place in the batch.

Pillow counts in whole numbers: its weights are multiples of 2 ** -22, and it rounds after each of the two passes. Where
a sum lies halfway between two levels, the tiny errors of the weights decide. In float32 a sum would have other errors,
and after two passes a level could be off by two. So each weight is split into a high part, a multiple of 2 ** -11, and
a low part. The sums of either parts are exact in float32, whatever the order of the additions.

H, W  the canvas;  h, w  an image as decoded;  T  the most pixels (*taps*) of which a pixel of the canvas is a mean
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.engine.cuda_runtime import upload
from service.engine.providers import CUDA, LOG_ERRORS_ONLY, open_session
from service.engine.sample_canvases import busy
from service.images.fit import Canvas, Resize
from service.images.pending import finish

GRAPH = Path(__file__).with_name("resize.onnx")
BITS, LOW_BITS = 22, 11  # of a weight, as in Pillow, and of its low part
ALIGNMENT = 16  # bytes; kernels may read and write several pixels at once
BLANK = np.zeros((1, 1, 3), np.uint8)
NEAR = 1  # the level by which torchvision's way of resizing may differ, because it adds up in float32

Array = NDArray[Any]

log = logging.getLogger(__name__)


class Resizer:
    """Resizes the images of a batch on one device. Any thread may use it. Raises ValueError if it cannot be opened."""

    def __init__(self, provider: str, device: int) -> None:
        self._place = ("cuda" if provider == CUDA else "cpu", device)
        self._session = open_session(GRAPH.read_bytes(), provider, _session_options(), device=device)

    def batch(self, canvases: Sequence[Canvas], rows: int) -> OrtValue:
        """The images as uint8 [rows, H, W, 3] in the device's memory, zero outside the images and in further rows.

        Raises ValueError for canvases of different sizes, and whatever ONNX Runtime raises.
        """
        size = canvases[0].size
        images = OrtValue.ortvalue_from_shape_and_type((rows, *size, 3), np.uint8, *self._place)
        address, step = images.data_ptr(), math.prod(size) * 3
        for row, canvas in enumerate(canvases):
            if canvas.size != size:
                raise ValueError(f"canvases {canvas.size} and {size} in one batch")
            self._run(canvas.pixels, canvas.pending or _as_it_is(canvas), size, address + row * step)
        for row in range(len(canvases), rows):
            self._run(BLANK, Resize(1, 1, (0, 0, 1, 1), False), size, address + row * step)
        return images

    def _run(self, pixels: NDArray[np.uint8], to_do: Resize, size: tuple[int, int], address: int) -> None:
        """Writes one image to `address`, where it has all of the canvas of `size`."""
        (H, W), (h, w) = size, pixels.shape[:2]
        left, upper, right, lower = to_do.box
        binding = self._session.io_binding()
        self._bind_image(binding, np.ascontiguousarray(pixels))
        across = taps(w, to_do.width, left, right, to_do.antialias, W)
        down = taps(h, to_do.height, upper, lower, to_do.antialias, H)
        given = {
            "columns_shape": np.array((w, 2 * W)),
            "columns_places": across.places,
            "columns_weights": across.weights,
            "rows_shape": np.array((2 * H, h)),
            "rows_places": np.ascontiguousarray(down.places.T),
            "rows_weights": np.ascontiguousarray(down.weights.T),
            "rounds": np.array(to_do.antialias),
        }
        for name, value in given.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("pixels", *self._place, np.uint8, (H, W, 3), address)
        self._session.run_with_iobinding(binding)

    def _bind_image(self, binding: onnxruntime.IOBinding, pixels: NDArray[np.uint8]) -> None:
        if self._place[0] == "cpu":
            binding.bind_cpu_input("image", pixels)
            return
        there = OrtValue.ortvalue_from_shape_and_type(pixels.shape, np.uint8, *self._place)
        upload(pixels, there.data_ptr())  # bind_cpu_input would hold the GIL while it copies
        binding.bind_ortvalue_input("image", there)


def _session_options() -> onnxruntime.SessionOptions:
    """Options for a session with a memory arena of its own, because a detector may run at the same time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    return options


def run(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], images: OrtValue, sizes: NDArray[np.int64]
) -> list[Array]:
    """`session.run` for images that are in the device's memory already."""
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", images)
    binding.bind_cpu_input("sizes", sizes)
    for name in outputs:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


@functools.cache
def resizer(provider: str, device: int) -> Resizer | None:
    """The resizer that all engines on a device share. None if it fails, or its pixels are wrong; the log says why."""
    try:
        found = Resizer(provider, device)
        averaged, interpolated = (_difference(found, antialias) for antialias in (True, False))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        fault = f"the log has ONNX Runtime's message ({type(error).__name__})"
        log.warning("a resize on the device fails", exc_info=error)
    else:
        if not averaged and interpolated <= NEAR:
            log.info("ordinary images are resized on %s", _name(provider, device))
            return found
        fault = f"its pixels differ from the CPU's by up to {max(averaged, interpolated)} levels"
    log.warning("images are resized on the CPU, not on %s as RESIZE_ON_GPU asks: %s", _name(provider, device), fault)
    return None


def suits(canvases: Sequence[tuple[int, int]]) -> bool:
    """Whether every image of a batch begins at an aligned address."""
    return all(math.prod(canvas) * 3 % ALIGNMENT == 0 for canvas in canvases)


class Taps(NamedTuple):
    """The weights along one axis: first the high parts for each pixel of the canvas, then the low parts.

    places   int32 [T, 2 n], pixels of the image, different ones for each pixel of the canvas
    weights  float32 [T, 2 n]; zeros after the image
    """

    places: NDArray[np.int32]
    weights: NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def taps(size: int, new_size: int, start: float, end: float, antialias: bool, canvas: int) -> Taps:
    """The weights for an axis of an image, on a canvas with `canvas` pixels.

    size        pixels of the image before
    new_size    and after the resize, of the part from `start` to `end`
    antialias   as in `Geometry`
    """
    first, kernel = _averaged(size, new_size, start, end) if antialias else _interpolated(size, new_size)
    units = (kernel * 2**BITS + 0.5).astype(np.int64)
    low = units % 2**LOW_BITS
    weights = np.zeros((len(kernel), 2 * canvas), np.float32)
    weights[:, :new_size] = (units - low) / 2**BITS
    weights[:, canvas : canvas + new_size] = low / 2**BITS
    places = np.zeros((len(kernel), canvas), np.int32)
    places[:, :new_size] = first
    places += np.arange(len(kernel), dtype=np.int32)[:, np.newaxis]
    found = Taps(np.hstack([places, places]), weights)
    for array in found:
        array.flags.writeable = False
    return found


def _averaged(size: int, new_size: int, start: float, end: float) -> tuple[Array, Array]:
    """The first pixel of each mean [new_size], and the weights [T, new_size] of Pillow's filter.

    They are a triangle that reaches to either side as far as a new pixel is wide, but at least one pixel. At the
    borders, where a part of it is outside the image, the rest counts more. All is computed as in Pillow, because the
    last bit matters: the box in float32, the rest in float64, the sum from the first pixel to the last.
    """
    step = float(np.float32(end) - np.float32(start)) / new_size
    reach = max(step, 1.0)
    centre = float(np.float32(start)) + (np.arange(new_size) + 0.5) * step
    count = min(size, 2 * math.ceil(reach) + 1)
    first = np.clip((centre - reach + 0.5).astype(np.int64), 0, size - count)
    pixels = first + np.arange(count)[:, np.newaxis]
    kernel = (1 - np.abs((pixels - centre + 0.5) * (1 / reach))).clip(0)
    total = np.zeros(new_size)
    for weights in kernel:
        total += weights
    return first, kernel / total


def _interpolated(size: int, new_size: int) -> tuple[Array, Array]:
    """As `_averaged`, for the two neighbours that `interpolate` takes. It computes their distances in float32."""
    step, half = np.float32(size / new_size), np.float32(0.5)
    place = ((np.arange(new_size, dtype=np.float32) + half) * step - half).clip(0, size - 1).astype(np.float64)
    count = min(size, 2)
    first = np.clip(place.astype(np.int64), 0, size - count)
    pixels = first + np.arange(count)[:, np.newaxis]
    return first, (1 - np.abs(pixels - place)).clip(0)


def _as_it_is(canvas: Canvas) -> Resize:
    height, width = canvas.pixels.shape[:2]
    return Resize(height, width, (0, 0, width, height), False)


def _difference(resizer: Resizer, antialias: bool) -> int:
    """The largest difference of a level from what the CPU gives, for a larger and a smaller image."""
    found = 0
    for height, width in ((150, 200), (30, 40)):
        to_do = Resize(60, 80, (0, 0, width - 0.5, height), antialias)
        canvas = Canvas(busy((height, width)).pixels, (64, 96), width, height, pending=to_do)
        placed = resizer.batch([canvas], 1).numpy()[0].astype(int)
        expected = np.zeros((64, 96, 3), int)
        expected[:60, :80] = finish(canvas.pixels, to_do)
        found = max(found, int(np.abs(placed - expected).max()))
    return found


def _name(provider: str, device: int) -> str:
    return f"GPU {device}" if provider == CUDA else "the CPU provider"
