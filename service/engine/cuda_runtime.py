"""The few functions of CUDA's runtime library that ONNX Runtime's Python package does not offer.

ONNX Runtime has loaded the library by the time these are called, so it is found by its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import weakref

import numpy as np
import onnxruntime
from numpy.typing import NDArray

PORTABLE = 1  # cudaHostAllocPortable: pinned for all GPUs
HOST_TO_DEVICE = 1  # cudaMemcpyHostToDevice


class CudaError(Exception):
    """A function of the CUDA runtime failed, or the library is missing."""


def pinned(size: int) -> NDArray[np.uint8]:
    """`size` bytes of memory that a GPU can read by itself, freed together with the array. Raises CudaError."""
    address = ctypes.c_void_p()
    _call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE))
    assert address.value
    memory = (ctypes.c_uint8 * size).from_address(address.value)
    # views of the array keep `memory` alive
    weakref.finalize(memory, _free, address).atexit = False  # the process may end while the GPU no longer answers
    return np.ctypeslib.as_array(memory)


def upload(values: NDArray[np.uint8], address: int) -> None:
    """Copies a contiguous array to `address` on a GPU. Other Python threads run meanwhile. Raises CudaError."""
    source, size = ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes)
    _call("cudaMemcpy", ctypes.c_void_p(address), source, size, ctypes.c_int(HOST_TO_DEVICE))
    _call("cudaStreamSynchronize", None)  # cudaMemcpy may return while the last part is still on its way


def free_and_total(device: int) -> tuple[int, int]:
    """The bytes of a GPU's memory that are free, and all of them. Raises CudaError."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cudaSetDevice", ctypes.c_int(device))
    _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def _free(address: ctypes.c_void_p) -> None:
    with contextlib.suppress(CudaError):  # for example after the GPU has failed
        _call("cudaFreeHost", address)


def _call(name: str, *arguments: object) -> None:
    try:
        status = getattr(_library(), name)(*arguments)
    except (OSError, AttributeError) as error:
        raise CudaError(f"CUDA's runtime library cannot be used ({type(error).__name__})") from error
    if status:
        raise CudaError(f"{name} failed with status {status}")


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError if the library is not installed."""
    major = str(onnxruntime.cuda_version).partition(".")[0]
    return ctypes.CDLL(f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}")
