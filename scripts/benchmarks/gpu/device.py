"""The device that is measured: its name, its memory and how busy it is. NVML answers for a GPU, Linux for the CPU."""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from benchmarks.load import process_usage
from benchmarks.machine import describe
from service.engine.cores import usable_cores
from service.engine.providers import CPU

SAMPLED_EVERY = 0.1  # seconds; NVML itself averages over a sixth of a second or more


class Device:
    """The first GPU that the process may use, or the CPU. Raises pynvml's errors if NVML cannot be used."""

    def __init__(self, provider: str) -> None:
        self._nvml: Any = None
        if provider == CPU:
            self.card, self.driver = describe(provider, usable_cores()).split(",")[0], ""
            return
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.card, self.driver = pynvml.nvmlDeviceGetName(self._handle), pynvml.nvmlSystemGetDriverVersion()

    def memory(self, pids: list[int]) -> int:
        """Bytes in use: on a GPU by all processes, on the CPU by `pids`."""
        if self._nvml is None:
            return process_usage.usage(pids).memory or 0
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def busy(self, pids: list[int]) -> "Busy":
        """Measures how busy the device is while the context lasts: a GPU by any process, the CPU by `pids`."""
        return Busy(self._cpu_share(pids) if self._nvml is None else self._gpu_share)

    def _gpu_share(self) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    @staticmethod
    def _cpu_share(pids: list[int]) -> Callable[[], float]:
        last = [time.monotonic(), process_usage.usage(pids).cpu_seconds or 0.0]

        def share() -> float:
            now, spent = time.monotonic(), process_usage.usage(pids).cpu_seconds or 0.0
            found = (spent - last[1]) / max(1e-9, now - last[0]) / usable_cores()
            last[:] = now, spent
            return found

        return share


class Busy:
    """share: of the time in which the device worked, the mean of samples; None before the first one."""

    def __init__(self, sample: Callable[[], float]) -> None:
        self._sample = sample
        self._over = threading.Event()
        self._samples: list[float] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @property
    def share(self) -> float | None:
        return sum(self._samples) / len(self._samples) if self._samples else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(SAMPLED_EVERY):
            with contextlib.suppress(Exception):  # NVML misses a sample now and then; its errors have no public base
                self._samples.append(self._sample())
