"""The GPUs' memory use, read from the driver at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

log = logging.getLogger(__name__)


class GpuMemory(Collector):
    """`detector_gpu_memory_bytes` by GPU number, as in nvidia-smi, and kind: used (by all processes) and total.

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
            except self._nvml.NVMLError as error:  # a lost GPU must not hide the other metrics
                log.warning("the memory of GPU %d cannot be read: %s", index, type(error).__name__)
                continue
            memory.add_metric([str(index), "used"], info.used)
            memory.add_metric([str(index), "total"], info.total)
        yield memory


def watch(registry: CollectorRegistry) -> None:
    """Adds the GPUs' memory to the metrics. Without a driver the service runs without these metrics."""
    try:
        GpuMemory(registry)
    except Exception as error:  # not installed (the cuda extra brings it), or no driver
        log.warning("no metrics of GPU memory: %s", type(error).__name__)
