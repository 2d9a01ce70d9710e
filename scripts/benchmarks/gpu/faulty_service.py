"""Starts the service with a fault, to see how it survives: `python -m benchmarks.gpu.faulty_service FAULT`.

The fault begins with SIGUSR1.

dead    a kernel is launched that stops at once with an error, after which the CUDA context accepts no work; on the CPU,
        every later run raises an error instead
memory  runs of more than MOST images raise the error that ONNX Runtime raises when memory runs out
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from service import __main__
from service.engine.providers import cuda_devices

DEAD, MEMORY = "dead", "memory"
MOST = 2  # images
NO_MEMORY = "bfc_arena.cc: Available memory of 1048576 is smaller than requested bytes of 4194304; failed to allocate"
BROKEN = "CUDA failure 719: unspecified launch failure"
# PTX is translated by the driver, so the same text serves every GPU.
TRAP = b".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry stop() { trap; }\n\0"


def program(fault: str) -> Sequence[str]:
    """What Python must run to start the service with a fault; without one if it is empty."""
    return ("-m", "benchmarks.gpu.faulty_service", fault) if fault else ("-m", "service")


def environment() -> dict[str, str]:
    """Variables with which Python finds this module in a process of its own."""
    paths = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[3])]
    return {"PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}


def main(fault: str) -> int:
    begin = _run_out_of_memory if fault == MEMORY else _break
    signal.signal(signal.SIGUSR1, lambda *_: begin())
    del sys.argv[1:]  # the service reads its flags from there
    return __main__.main()


def _run_out_of_memory() -> None:
    _instead_of_run(lambda images: NO_MEMORY if images > MOST else None)


def _break() -> None:
    if cuda_devices():
        break_context()
    else:
        _instead_of_run(lambda _: BROKEN)


def _instead_of_run(fault: Callable[[int], str | None]) -> None:
    """Lets every session raise `fault(N)`, if that is not None, instead of running a batch of N images."""
    run = onnxruntime.InferenceSession.run

    def faulty(session: onnxruntime.InferenceSession, names: Any, feed: Any, options: Any = None) -> Any:
        if message := fault(len(feed["images"])):
            raise RuntimeError(message)
        return run(session, names, feed, options)

    onnxruntime.InferenceSession.run = faulty


def break_context() -> None:
    """Launches a kernel that traps, in the context that ONNX Runtime uses. Raises OSError if it cannot be launched."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    for name, arguments in (
        ("cuInit", (0,)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), 0)),
        ("cuCtxSetCurrent", (context,)),
        ("cuModuleLoadData", (ctypes.byref(module), TRAP)),
        ("cuModuleGetFunction", (ctypes.byref(function), module, b"stop")),
        ("cuLaunchKernel", (function, 1, 1, 1, 1, 1, 1, 0, None, None, None)),
    ):
        if code := getattr(driver, name)(*arguments):
            raise OSError(f"{name} failed with {code}")
    driver.cuCtxSynchronize()  # reports the trap


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
