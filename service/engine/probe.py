"""Checks at start that a device computes: runs real kernels on it and compares their results with NumPy's.

That the CUDA provider loads proves little. cuDNN is loaded by the first convolution, some releases of it cannot plan
any convolution for some GPUs, and ONNX Runtime has no code for many architectures. Each of these shows only when a
kernel runs. So the graph `probe.onnx` (written by scripts/faster_rcnn/graph/probe_graph.py) has one kernel of each
kind that a detector needs: a convolution by cuDNN, a matrix product by cuBLAS, and ONNX Runtime's own top-k and NMS.

All numbers are small integers, so the results are exact in float32 and in TF32.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from service.engine import gpu, gpu_code
from service.engine.out_of_memory import is_out_of_memory

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

GRAPH = Path(__file__).with_name("probe.onnx")
BEST = 300  # K of the top-k: more than 256, where ONNX Runtime chooses the kernel that detectors use
PAIRS = 200  # of boxes; of each pair NMS keeps the first
IOU_THRESHOLD = 0.5
LOG_ERRORS_ONLY = 3
TOLERANCE = 0.01  # Winograd's convolution rounds; a wrong kernel is off by whole numbers

INSTALL = "pip install --upgrade 'faster-rcnn-service[cuda]'"

log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """Why a device cannot be used: a fixed word for programs, a sentence, and what to do."""

    word: str
    reason: str
    remedy: str


# By the numbers of CUDA's runtime (driver_types.h).
_CUDA_FAILURES = {
    46: Fault("busy", "another process has it for itself", "end that process, or set nvidia-smi --compute-mode=0"),
    209: Fault("architecture", "a library has no code for its architecture", f"update the libraries: {INSTALL}"),
    214: Fault("memory", "its memory has an error that ECC cannot correct", "reset or replace it"),
}


@dataclass(frozen=True)
class ProbeReport:
    """What the check of one device found. Texts are empty if they are unknown, and on the CPU.

    device        the GPU's index, in CUDA's order
    gpu           its name
    architecture  such as sm_90
    driver        the driver's version, such as 580.95.05
    driver_cuda   the highest version of CUDA that the driver supports, such as 13.0
    cuda, cudnn   the versions of the libraries that are loaded
    seconds       the time that the check took
    fault         why the device cannot be used, or None
    """

    device: int
    gpu: str = ""
    architecture: str = ""
    driver: str = ""
    driver_cuda: str = ""
    cuda: str = ""
    cudnn: str = ""
    seconds: float = 0.0
    fault: Fault | None = None

    def facts(self) -> dict[str, str]:
        """What `/readyz` and the metrics show, as texts. `fault` is its fixed word, or empty."""
        names = ("gpu", "architecture", "driver", "driver_cuda", "cuda", "cudnn")
        return {name: getattr(self, name) for name in names} | {"fault": self.fault.word if self.fault else ""}

    def __str__(self) -> str:
        """Such as "GPU 0: NVIDIA L4, sm_89, driver 580.95.05 (CUDA 13.0), CUDA 13.0, cuDNN 9.14.0"."""
        driver = f"driver {self.driver or 'of unknown version'} (CUDA {self.driver_cuda or 'unknown'})"
        libraries = f"CUDA {self.cuda or 'not loaded'}, cuDNN {self.cudnn or 'not loaded'}"
        return f"GPU {self.device}: {self.gpu or 'unknown'}, {self.architecture or 'unknown'}, {driver}, {libraries}"


def check(provider: str, device: int = 0) -> ProbeReport:
    """Runs the kernels on one device and says what it is. Nothing is raised: an unusable device has a `fault`.

    device  index of the GPU; the CPU has only 0
    """
    started = time.perf_counter()
    report = ProbeReport(device)
    if provider == CUDA:
        report, capability = _described(device)
        fault = report.fault or _run(CUDA, device)
        fault = fault and _explained(fault, report, capability)
    else:
        fault = _run(provider, device)
    return replace(report, fault=fault, seconds=time.perf_counter() - started)


def _described(device: int) -> tuple[ProbeReport, tuple[int, int]]:
    """What the driver and the libraries say, with the GPU's compute capability. They may have a fault already."""
    needed = gpu.needed_cuda() or (0, 0)
    try:
        found = gpu.describe(device)
    except gpu.NoGpuError as error:
        return ProbeReport(device, fault=Fault("driver", error.reason, error.remedy)), (0, 0)
    report = ProbeReport(
        device, found.name, found.architecture, found.driver, driver_cuda="{}.{}".format(*found.driver_cuda)
    )
    if found.driver_cuda[0] < needed[0]:
        return replace(report, fault=_old_driver(found, needed)), found.capability
    onnxruntime.preload_dlls()  # uses the wheels of the cuda extra if CUDA is not installed on the system
    report = replace(report, cuda=gpu.cuda_version(needed[0]), cudnn=gpu.cudnn_version())
    if missing := gpu.missing_libraries(needed[0]):
        reason = f"{_listed(missing)} cannot be loaded, which CUDA {needed[0]} and cuDNN {gpu.CUDNN_MAJOR} should bring"
        report = replace(report, fault=Fault("libraries", reason, f"install the libraries: {INSTALL}"))
    return report, found.capability


def _old_driver(found: gpu.Gpu, needed: tuple[int, int]) -> Fault:
    driver = f"driver {found.driver}" if found.driver else "driver"
    first = gpu.FIRST_DRIVER.get(needed[0])
    return Fault(
        "driver",
        "the {} supports CUDA {}.{}, but onnxruntime-gpu {} needs CUDA {}.{}".format(
            driver, *found.driver_cuda, onnxruntime.__version__, *needed
        ),
        f"update it to {first} or later (on Linux; see NVIDIA's release notes for others)" if first else "update it",
    )


def _run(provider: str, device: int) -> Fault | None:
    """Runs the graph on one device and compares its results. It has a session and a memory arena of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    settings = {"device_id": str(device), "use_tf32": "0"} if provider == CUDA else {}
    given = inputs()
    try:
        # Without enable_fallback=0, ONNX Runtime would go on silently on the CPU after an error.
        session = onnxruntime.InferenceSession(
            GRAPH.read_bytes(), options, providers=[(provider, settings)], enable_fallback=0
        )
        if provider not in session.get_providers():
            reason = "ONNX Runtime's CUDA provider does not load; the log has its message"
            return Fault("libraries", reason, f"update the driver, or install the libraries: {INSTALL}")
        wanted = expected(given)
        values = dict(zip(wanted, session.run(list(wanted), given), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        log.warning("the check of %s %d failed: %s", provider, device, str(error).partition("\n")[0])
        return _cause(error)
    if wrong := [name for name in wanted if not _equal(values[name], wanted[name])]:
        return Fault("values", f"it computes wrong values ({_listed(wrong)})", "test the GPU's memory, or replace it")
    return None


def _cause(error: Exception) -> Fault:
    """The fault that ONNX Runtime's message stands for. The message itself goes to the log alone."""
    if is_out_of_memory(error):
        return Fault("memory", "it has no memory left", "stop the programs that use it; nvidia-smi lists them")
    number = re.search(r"CUDA failure (\d+)\b", str(error))
    default = Fault(
        "kernels",
        "a kernel fails on it; the log has the message",
        f"update driver and libraries ({INSTALL}), or take another release of cuDNN 9",
    )
    return _CUDA_FAILURES.get(int(number[1]), default) if number else default


def _explained(fault: Fault, report: ProbeReport, capability: tuple[int, int]) -> Fault:
    """The reason for a failed kernel, if the provider has no code for the GPU's architecture."""
    if fault.word not in ("architecture", "kernels", "values"):
        return fault
    library = next(Path(onnxruntime.__file__).parent.glob("capi/*onnxruntime_providers_cuda.*"), None)
    try:
        code = gpu_code.read(library) if library else None
    except OSError:
        code = None
    if code is None or not (code.sass or code.ptx) or code.serves(capability):
        return fault
    return Fault(
        "architecture",
        f"onnxruntime-gpu {onnxruntime.__version__} has no code for {report.architecture}, only for {code}",
        "use a GPU that it has code for, or an ONNX Runtime that was built for this one",
    )


def inputs() -> dict[str, NDArray[Any]]:
    """The inputs of the graph, always the same.

    image    [1, 16, 24, 24]       boxes       [1, 2 PAIRS, 4], x1, y1, x2, y2
    filters  [16, 16, 3, 3]        confidence  [1, 1, 2 PAIRS]
    left     [40, 64]              scores      [1, 2000], all different
    right    [64, 24]
    """
    random = np.random.default_rng(0)
    first = np.arange(2 * PAIRS) // 2 * 20 + np.arange(2 * PAIRS) % 2 * 2  # x1: 0, 2, 20, 22, 40, 42 …
    zero, ten = np.zeros_like(first), np.full_like(first, 10)
    return {
        "image": _integers(random, 1, 16, 24, 24),
        "filters": _integers(random, 16, 16, 3, 3),
        "left": _integers(random, 40, 64),
        "right": _integers(random, 64, 24),
        "scores": random.permutation(2000).astype(np.float32)[np.newaxis],
        "boxes": np.stack([first, zero, first + 10, ten], axis=-1).astype(np.float32)[np.newaxis],
        "confidence": np.arange(2 * PAIRS, 0, -1, dtype=np.float32)[np.newaxis, np.newaxis],
    }


def expected(given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the graph returns for `inputs()`, computed by NumPy."""
    windows = sliding_window_view(np.pad(given["image"], ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    order = np.argsort(-given["scores"], axis=1)[:, :BEST]
    # The boxes of a pair are 10 wide and 2 apart: IoU = 8 · 10 / (100 + 100 - 80) = 2/3, so the second is suppressed.
    kept = np.stack([np.zeros(PAIRS), np.zeros(PAIRS), 2 * np.arange(PAIRS)], axis=-1)
    return {
        "convolution": np.einsum("nchwij,ocij->nohw", windows, given["filters"]),
        "product": given["left"] @ given["right"],
        "best": np.take_along_axis(given["scores"], order, axis=1),
        "places": order,
        "kept": kept.astype(np.int64),
    }


def _integers(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.integers(-3, 4, shape).astype(np.float32)


def _equal(value: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return value.shape == wanted.shape and bool(np.allclose(value, wanted, rtol=0, atol=TOLERANCE))


def _listed(names: list[str]) -> str:
    return ", ".join(names)
