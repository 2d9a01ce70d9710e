"""Resizes images on the device that runs the detector, instead of on the CPU's cores (contract 2.5).

Each image runs through the graph `resize.onnx` (written by scripts/faster_rcnn/graph/resize_graph.py), which resizes
along each axis by a matrix product and writes the result into the image's place in the batch. A pixel of the canvas is
a mean of the image's pixels around one point, so that their weights are a triangle:

    weight of pixel i = max(0, peak - |slope * (i - pixel - fraction)|)

The centre of the triangle is split into a whole pixel and a fraction, because float32 would round their sum: near 2000
to 1/8192, which is 0.03 levels between black and white.

H, W  the canvas;  h, w  an image as decoded;  an *axis* is the triangles for all rows, or all columns, of a canvas
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
AXIS_PARTS = ("pixel", "fraction", "slope", "peak")
ALIGNMENT = 16  # bytes; kernels may read and write several pixels at once
BLANK = np.zeros((1, 1, 3), np.uint8)
NEAR = 1  # level by which the sums in float32 may be rounded to another one than Pillow's

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
        given = {
            "columns": axis(w, to_do.width, left, right, to_do.antialias, W),
            "rows": np.ascontiguousarray(axis(h, to_do.height, upper, lower, to_do.antialias, H).T),
            "image_columns": _numbers(w)[:, np.newaxis],
            "image_rows": _numbers(h)[np.newaxis],
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
        difference = _difference(found)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        fault = f"the log has ONNX Runtime's message ({type(error).__name__})"
        log.warning("a resize on the device fails", exc_info=error)
    else:
        if difference <= NEAR:
            log.info("ordinary images are resized on %s", _name(provider, device))
            return found
        fault = f"its pixels differ from Pillow's by up to {difference} levels"
    log.warning("images are resized on the CPU, not on %s as RESIZE_ON_GPU asks: %s", _name(provider, device), fault)
    return None


def suits(canvases: Sequence[tuple[int, int]]) -> bool:
    """Whether every image of a batch begins at an aligned address."""
    return all(math.prod(canvas) * 3 % ALIGNMENT == 0 for canvas in canvases)


@functools.lru_cache(maxsize=256)
def axis(size: int, new_size: int, start: float, end: float, antialias: bool, canvas: int) -> NDArray[np.float32]:
    """[4, canvas]: pixel, fraction, slope and peak of each triangle along one axis; zeros after the image.

    size        pixels of the image before
    new_size    and after the resize, of the part from `start` to `end`, on a canvas with `canvas` pixels
    antialias   as in `Geometry`
    """
    if antialias:
        centre, reach, peak = _averaged(size, new_size, start, end)
    else:
        centre, reach, peak = _interpolated(size, new_size), 1.0, np.ones(new_size)
    pixel = np.floor(centre)
    found = np.zeros((len(AXIS_PARTS), canvas), np.float32)
    found[:, :new_size] = pixel, centre - pixel, peak / reach, peak
    found.flags.writeable = False
    return found


def _interpolated(size: int, new_size: int) -> NDArray[np.float64]:
    """The centres for `interpolate`, which computes them in float32."""
    step, half = np.float32(size / new_size), np.float32(0.5)
    centre = (np.arange(new_size, dtype=np.float32) + half) * step - half
    return centre.astype(np.float64).clip(0, size - 1)


def _averaged(size: int, new_size: int, start: float, end: float) -> tuple[Array, float, Array]:
    """Centre, reach and peak of the triangles of Pillow's filter.

    To either side, a triangle reaches as far as a new pixel is wide, but at least one pixel. At the borders, where a
    part of it is outside the image, the rest counts more.
    """
    step = (end - start) / new_size
    reach = max(step, 1.0)
    centre = start + (np.arange(new_size) + 0.5) * step - 0.5
    pixels = np.floor(centre - reach)[:, np.newaxis] + np.arange(2 * math.ceil(reach) + 2)
    weights = (1 - np.abs(pixels - centre[:, np.newaxis]) / reach).clip(0)
    weights[(pixels < 0) | (pixels >= size)] = 0
    return centre, reach, 1 / weights.sum(axis=1)


@functools.lru_cache(maxsize=256)
def _numbers(size: int) -> NDArray[np.float32]:
    return np.arange(size, dtype=np.float32)


def _as_it_is(canvas: Canvas) -> Resize:
    height, width = canvas.pixels.shape[:2]
    return Resize(height, width, (0, 0, width, height), False)


def _difference(resizer: Resizer) -> int:
    """The largest difference of a level from what the CPU gives, for a larger and a smaller image and both filters."""
    found = 0
    for antialias in (True, False):
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
