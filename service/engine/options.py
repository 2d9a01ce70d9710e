"""How engines run, as the settings ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.precision import Precision
from service.engine.providers import CUDA


@dataclass(frozen=True)
class EngineOptions:
    """The settings PRECISION, FIXED_SHAPES, RESIZE_ON_GPU and GPU_MEMORY. The defaults are those of the offline half.

    precision     how far CUDA may round; the CPU always computes as the graph says
    fixed_shapes  whether to open a session for each of a few canvases and batch sizes; None: on CUDA only
    resize        whether engines resize ordinary images on their devices; None: on CUDA only
    gpu_memory    the most bytes of a GPU for the runs of all sessions on it, beside their weights; None: no limit
    """

    precision: Precision = "strict"
    fixed_shapes: bool | None = False
    gpu_memory: int | None = None
    resize: bool | None = False

    def fixes_shapes(self, provider: str) -> bool:
        return provider == CUDA if self.fixed_shapes is None else self.fixed_shapes

    def resizes(self, provider: str) -> bool:
        return provider == CUDA if self.resize is None else self.resize
