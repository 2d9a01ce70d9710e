"""Memory for the inputs of runs, which is used again and again.

A GPU copies from pinned memory two to four times as fast as from ordinary memory, but pinning takes longer than a run.

N  rows of a batch;  H, W  the canvas;  h, w  an image on it
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from service.engine.cuda_runtime import CudaError, pinned
from service.images.fit import Canvas

Bytes = NDArray[np.uint8]

log = logging.getLogger(__name__)


class Buffers:
    """Buffers, as many as batches are prepared or run at the same time. Any thread may use it.

    A buffer that was taken and not given back is only lost; it is freed with the last array that refers to it.
    """

    def __init__(self, pins: bool) -> None:
        """`pins`: whether the memory should be pinned. If that fails, a warning says so and ordinary memory is used."""
        self._pins = pins
        self._lock = Lock()
        self._free: list[Bytes] = []
        self._largest = 0  # bytes of a buffer, so that each of them is large enough for any batch so far

    def take(self, size: int) -> Bytes:
        """A buffer of at least `size` bytes, which still holds what its last user wrote."""
        with self._lock:
            self._largest = max(self._largest, size)
            while self._free:
                buffer = self._free.pop()
                if len(buffer) >= size:
                    return buffer
            largest = self._largest
        return self._allocated(largest)

    def reserve(self, count: int, size: int) -> None:
        """Has `count` buffers of at least `size` bytes ready, so that no request has to wait for them."""
        for buffer in [self.take(size) for _ in range(count)]:
            self.give_back(buffer)

    def give_back(self, buffer: Bytes) -> None:
        with self._lock:
            if len(buffer) >= self._largest:
                self._free.append(buffer)

    def _allocated(self, size: int) -> Bytes:
        if self._pins:
            try:
                return pinned(size)
            except CudaError as error:
                self._pins = False
                log.warning("images are copied to the GPU from ordinary memory, more slowly: %s", error)
        return np.zeros(size, dtype=np.uint8)


@functools.cache
def shared_buffers(pins: bool) -> Buffers:
    """The buffers that all engines of the process share."""
    return Buffers(pins)


def fill(images: Bytes, canvases: Sequence[Canvas]) -> None:
    """Writes the images of `canvases` into `images` [N, H, W, 3], and zeros everywhere else.

    What a buffer held before belongs to other clients, so nothing of it may stay, although contract 1.2 says that the
    bytes outside an image do not matter. Raises ValueError for a canvas of another size.
    """
    H, W = images.shape[1:3]
    for row, canvas in enumerate(canvases):
        if canvas.size != (H, W):
            raise ValueError(f"canvases {canvas.size} and {(H, W)} in one batch")
        h, w = canvas.pixels.shape[:2]
        images[row, :h, :w] = canvas.pixels
        images[row, :h, w:] = 0
        images[row, h:] = 0
    images[len(canvases) :] = 0
