"""ONNX Runtime's execution providers: chooses the one that this machine can use, and opens sessions on it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnxruntime

from service.engine import gpu, probe
from service.engine.probe import CPU, CUDA, ProbeReport

LOG_ERRORS_ONLY, LOG_FATAL_ONLY = 3, 4
SPIN_MICROSECONDS = 100

_DEFAULT_MEMORY = onnxruntime.OrtMemType.DEFAULT

log = logging.getLogger(__name__)


class ProviderUnavailableError(Exception):
    """CUDA is required but cannot be used; the message gives the reason and the remedy."""


class Choice(NamedTuple):
    """The provider that this machine can use.

    gpus     every GPU that was checked, with its fault if it cannot be used; empty if there is none
    why_cpu  why the service runs on the CPU; empty on CUDA
    """

    provider: str
    gpus: tuple[ProbeReport, ...] = ()
    why_cpu: str = ""

    @property
    def usable(self) -> list[int]:
        """The indices of the GPUs that passed the check."""
        return [report.device for report in self.gpus if not report.fault]


def pick_provider(require_cuda: bool = False) -> str:
    """CUDA if there is an NVIDIA GPU that computes, else the CPU. Raises what `choose` raises."""
    return choose(require_cuda).provider


def choose(require_cuda: bool = False, most_gpus: int | None = None) -> Choice:
    """Checks GPU after GPU until `most_gpus` of them can be used, and chooses CUDA if any can; else the CPU.

    Raises ProviderUnavailableError if CUDA is required and cannot be used.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return _cpu("this onnxruntime is built without CUDA", "install onnxruntime-gpu", require_cuda)
    try:
        number = gpu.count()
    except gpu.DriverFailedError as error:  # there seems to be a GPU, so nobody expects the CPU
        return _cpu(error.reason, error.remedy, require_cuda, level=logging.WARNING)
    except gpu.NoGpuError as error:
        return _cpu(error.reason, error.remedy, require_cuda)
    reports: list[ProbeReport] = []
    for index in range(number):
        reports.append(probe.check(CUDA, index))
        _announce(reports[-1])
        if most_gpus and sum(not report.fault for report in reports) == most_gpus:
            break
    if any(not report.fault for report in reports):
        return Choice(CUDA, tuple(reports))
    fault = reports[0].fault
    assert fault
    return _cpu(f"{reports[0]} cannot be used: {fault.reason}", fault.remedy, require_cuda, tuple(reports))


def _announce(report: ProbeReport) -> None:
    if fault := report.fault:
        log.warning("%s cannot be used: %s; %s", report, fault.reason, fault.remedy)
    else:
        log.info("%s, checked in %.1f s", report, report.seconds)


def _cpu(
    reason: str, remedy: str, require_cuda: bool, gpus: tuple[ProbeReport, ...] = (), level: int = logging.INFO
) -> Choice:
    if require_cuda:
        raise ProviderUnavailableError(f"REQUIRE_CUDA is set, but {reason}; {remedy}")
    choice = Choice(CPU, gpus, f"{reason}; {remedy}")
    log.log(level, "running on the CPU: %s", f"none of {len(gpus)} GPUs can be used" if gpus else choice.why_cpu)
    return choice


def cuda_devices() -> int:
    """The number of GPUs that the driver reports."""
    try:
        return gpu.count()
    except gpu.NoGpuError:
        return 0


def session_options(threads: int, runs_alone: bool = False) -> onnxruntime.SessionOptions:
    """Options for a session whose runs use `threads` threads each.

    runs_alone  whether no other run is expected at the same time; its threads then spin briefly while they wait

    All other options keep ONNX Runtime's defaults. Measurements found no faster alternative (docs/results.md).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # 1.13 to 1.18 times as fast as the next lower level, which keeps convolutions in the file's layout
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin while they wait take cores away from decoding and from other runs. With two threads on two busy
    # cores, a run took 1.4 to 1.8 times as long as with threads that sleep.
    # A run that is alone may spin, but only as long as most gaps between two nodes last, and not after its end. That is
    # 4 % faster, and no slower while another process is busy. Threads that spun longer doubled the time there.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(runs_alone)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # With an arena of its own, every session would keep the memory of its largest run for ever. All sessions share one,
    # so two models with four sessions each take 305 MB under load instead of 600 MB, at the same speed.
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = LOG_ERRORS_ONLY
    return options


@functools.cache  # once per process
def _share_arena() -> None:
    """Creates the memory arena on the CPU that all sessions share."""
    memory = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, _DEFAULT_MEMORY)
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({}))


def open_session(
    graph: bytes, provider: str, options: onnxruntime.SessionOptions, tf32: bool = False, device: int = 0
) -> onnxruntime.InferenceSession:
    """A session for the model `graph`, with the service's settings for its provider.

    tf32    lets CUDA round factors to ten bits of mantissa
    device  index of the GPU

    Raises ValueError if ONNX Runtime cannot load the graph, ProviderUnavailableError if it cannot load the provider.
    """
    cuda_options = {
        "device_id": str(device),
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE takes 0.6 s at every new shape
        "use_tf32": str(int(tf32)),
    }
    providers = [(CUDA, cuda_options), CPU] if provider == CUDA else [CPU]
    if provider == CUDA:
        # With a pattern, a session needs one block for all tensors of a run, from its second run on. The blocks of the
        # first run cannot hold it, so the arena would keep the memory of both (docs/results.md).
        options.enable_mem_pattern = False
    try:
        with _as_file(graph) as path:
            # with ONNX Runtime's fallback, a run that fails on CUDA would silently open the graph again on the CPU
            session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        log.warning("ONNX Runtime cannot load a graph: %s", str(error).splitlines()[0])
        raise ValueError("ONNX Runtime cannot load it; the log has its message, so export the graph again") from error
    if provider == CUDA and CUDA not in session.get_providers():
        # if the provider's library cannot be loaded, ONNX Runtime only logs it
        raise ProviderUnavailableError(f"ONNX Runtime did not load {provider}; its message is in the log")
    return session


@contextlib.contextmanager
def _as_file(graph: bytes) -> Iterator[str]:
    """The path of a file with exactly these bytes, held in memory if the system supports that.

    ONNX Runtime holds the GIL while it parses bytes (90 ms for 175 MB, during which no request is answered), but
    releases it while it reads a file. The model's own file may have changed since its hash was checked.
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
