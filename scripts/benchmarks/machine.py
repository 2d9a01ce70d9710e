"""The machine that a table was measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from service.engine.cores import usable_cores
from service.engine.providers import CUDA

MIB = 1024 * 1024


def describe(provider: str, threads: int) -> str:
    """One line: the processor, the usable cores, the threads, and the GPU if one is measured."""
    parts = [f"{_processor()}, {usable_cores()} cores usable, {threads} threads"]
    if provider == CUDA:
        parts.insert(0, _ask_gpu("name") or "a GPU that nvidia-smi does not name")
    return "; ".join(parts)


def other_work() -> str:
    """A warning if other processes keep the cores busy, or an empty text. Call it before measuring.

    Other work most affects the contenders that wait for all their threads.
    """
    if not hasattr(os, "getloadavg") or (load := os.getloadavg()[0]) < 0.5:
        return ""
    return (
        f"Other processes kept {load:.1f} of the cores busy in the minute before, which slows those contenders most "
        "that wait for all their threads. Measure again on an idle machine.\n"
    )


def gpu_memory() -> int:
    """Bytes in use on the first GPU, by all processes; 0 where nvidia-smi cannot tell."""
    used = _ask_gpu("memory.used")
    return int(float(used)) * MIB if used else 0


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "a CPU without a name"


def _ask_gpu(field: str) -> str:
    if (tool := shutil.which("nvidia-smi")) is None:
        return ""
    command = [tool, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else ""
