"""A metric of the GPUs' memory use, read from the driver at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

log = logging.getLogger(__name__)


class GpuMemory(Collector):
    """The metric `detector_gpu_memory_bytes`, by GPU number (as in nvidia-smi) and kind (used or total).

    Raises pynvml's errors if there is no driver.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        memory = GaugeMetricFamily(
            "detector_gpu_memory_bytes",
            "Memory of a GPU, by its number in nvidia-smi: used (by all processes) and total",
            labels=["gpu", "kind"],
        )
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                info = self._nvml.nvmlDeviceGetMemoryInfo(self._nvml.nvmlDeviceGetHandleByIndex(index))
            except self._nvml.NVMLError as error:  # a GPU that has failed must not hide the other metrics
                log.warning("the memory of GPU %d cannot be read: %s", index, type(error).__name__)
                continue
            memory.add_metric([str(index), "used"], info.used)
            memory.add_metric([str(index), "total"], info.total)
        yield memory


def watch(registry: CollectorRegistry) -> None:
    """Adds this metric to `registry`. If the driver cannot be used, it logs a warning and adds nothing."""
    try:
        GpuMemory(registry)
    except Exception as error:  # pynvml is not installed (the cuda extra includes it), or there is no driver
        log.warning("metrics of GPU memory are not available: %s", type(error).__name__)
