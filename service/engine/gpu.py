"""What NVIDIA's driver says about the GPUs, and which of the libraries that ONNX Runtime needs can be loaded.

The driver's own library is asked, because ONNX Runtime would log errors on a machine without a GPU. The numbers of
results and attributes are those of cuda.h (CUDA Driver API).
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_int, c_size_t
from typing import NamedTuple

import onnxruntime

WINDOWS = sys.platform == "win32"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
NO_DEVICE = 100
CUDNN_MAJOR = 9  # of every ONNX Runtime since 1.20
CURAND_MAJOR = 10  # of CUDA 11, 12 and 13
# The oldest driver for Linux that supports a major version of CUDA, with any minor version (CUDA's release notes).
FIRST_DRIVER = {12: 525, 13: 580}

# Why cuInit fails on a machine that has a driver, and what to do.
_NOT_STARTED = {
    34: ("its library is a stub", "remove the CUDA toolkit's folder 'stubs' from the library path"),
    802: ("the system is not ready", "start NVIDIA's Fabric Manager, which GPUs on NVSwitch need"),
    803: ("its library and its kernel module have different versions", "restart the machine, or the container"),
    804: ("this GPU does not support the compatibility package", "remove cuda-compat, or update the driver"),
}


class NoGpuError(Exception):
    """The driver reports no GPU."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class DriverFailedError(NoGpuError):
    """There is a driver, but it does not start or does not describe a GPU."""


class Gpu(NamedTuple):
    """One GPU as its driver describes it.

    capability    CUDA's compute capability, major and minor
    driver        the driver's version, such as 580.95.05; empty if the package nvidia-ml-py is not installed
    driver_cuda   the highest version of CUDA that the driver supports
    """

    name: str
    capability: tuple[int, int]
    driver: str
    driver_cuda: tuple[int, int]

    @property
    def architecture(self) -> str:
        return "sm_{}{}".format(*self.capability)


def count() -> int:
    """The number of GPUs that this process may use; CUDA_VISIBLE_DEVICES limits it.

    Raises NoGpuError if there are none, with the reason, and DriverFailedError if the driver does not start.
    """
    driver = _driver()
    number = c_int(0)
    result = driver.cuInit(0)
    if result in (0, NO_DEVICE):
        if driver.cuDeviceGetCount(byref(number)) != 0 or number.value < 1:
            raise _none_visible()
        return number.value
    reason, remedy = _NOT_STARTED.get(result, (f"cuInit returns {result}", "check nvidia-smi"))
    raise DriverFailedError(f"NVIDIA's driver does not start: {reason}", remedy)


def describe(index: int) -> Gpu:
    """The GPU of this index, in CUDA's order. Raises NoGpuError or DriverFailedError."""
    if not 0 <= index < count():
        raise _none_visible()
    driver = _driver()
    device, version, major, minor = c_int(), c_int(), c_int(), c_int()
    name = ctypes.create_string_buffer(256)
    for result in (
        driver.cuDeviceGet(byref(device), index),
        driver.cuDeviceGetName(name, c_int(len(name)), device),
        driver.cuDeviceGetAttribute(byref(major), COMPUTE_CAPABILITY_MAJOR, device),
        driver.cuDeviceGetAttribute(byref(minor), COMPUTE_CAPABILITY_MINOR, device),
        driver.cuDriverGetVersion(byref(version)),
    ):
        if result != 0:
            raise DriverFailedError(
                f"NVIDIA's driver does not describe GPU {index} (error {result})", "check nvidia-smi"
            )
    return Gpu(
        name.value.decode(errors="replace"),
        (major.value, minor.value),
        _driver_version(),
        _major_and_minor(version.value),
    )


def needed_cuda() -> tuple[int, int] | None:
    """The version of CUDA that the installed ONNX Runtime was built with; None if it was built without CUDA."""
    major, _, minor = (getattr(onnxruntime, "cuda_version", "") or "").partition(".")
    return (int(major), int(minor or 0)) if major else None


def missing_libraries(cuda_major: int) -> list[str]:
    """The libraries of CUDA and cuDNN that ONNX Runtime needs and that cannot be loaded."""
    needed = [
        *((name, cuda_major) for name in ("cudart", "cublasLt", "cublas")),
        ("curand", CURAND_MAJOR),
        ("cudnn", CUDNN_MAJOR),
    ]
    return [file for file in (_file(*each) for each in needed) if _load(file) is None]


def cuda_version(cuda_major: int) -> str:
    """The version of the CUDA libraries, such as 13.0; empty if they cannot be loaded."""
    version = c_int(0)
    library = _load(_file("cudart", cuda_major))
    if library is None or library.cudaRuntimeGetVersion(byref(version)) != 0:
        return ""
    return "{}.{}".format(*_major_and_minor(version.value))


def cudnn_version() -> str:
    """The version of cuDNN, such as 9.14.0; empty if it cannot be loaded."""
    library = _load(_file("cudnn", CUDNN_MAJOR))
    if library is None:
        return ""
    library.cudnnGetVersion.restype = c_size_t
    version = library.cudnnGetVersion()  # 91400 is 9.14.0
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _driver() -> ctypes.CDLL:
    library = _load("nvcuda.dll" if WINDOWS else "libcuda.so.1")
    if library is None:
        raise _none_visible()
    return library


def _none_visible() -> NoGpuError:
    return NoGpuError(
        "no NVIDIA GPU is visible", "check nvidia-smi, the container's GPU reservation, and CUDA_VISIBLE_DEVICES"
    )


def _driver_version() -> str:
    """From NVIDIA's management library, because CUDA knows only the version of CUDA that the driver supports."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # pynvml is not installed (the cuda extra includes it), or its library is missing
        return ""


def _file(name: str, major: int) -> str:
    return f"{name}64_{major}.dll" if WINDOWS else f"lib{name}.so.{major}"


def _load(file: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(file)
    except OSError:
        return None


def _major_and_minor(version: int) -> tuple[int, int]:
    """13020 is CUDA 13.2."""
    return version // 1000, version % 1000 // 10
