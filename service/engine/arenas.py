"""One memory arena for each GPU, which all sessions of all models share.

With an arena of its own, every session would keep the memory of its largest batch for ever, so two models might not fit
on a GPU that has room for the runs of either.
"""

from __future__ import annotations

import functools
import logging

import onnxruntime

from service.engine.cuda_runtime import CudaError, free_and_total
from service.engine.providers import CUDA

# Blocks are as large as requested, instead of twice as large as the block before. The largest batches are run first.
SAME_AS_REQUESTED = 1
MIB = 2**20

log = logging.getLogger(__name__)


@functools.cache  # once per process and GPU
def share_arena(device: int, limit: int | None = None) -> None:
    """Creates the arena of a GPU, for the sessions that are opened later. limit: its most bytes."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cuda", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, device, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg({"max_mem": limit or 0, "arena_extend_strategy": SAME_AS_REQUESTED})
    try:
        onnxruntime.create_and_register_allocator_v2(CUDA, memory, {"device_id": str(device)}, arena)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        log.warning(
            "every session keeps memory of its own on GPU %d, and GPU_MEMORY has no effect: %s",
            device,
            str(error).splitlines()[0],
        )
        return
    log.info("GPU %d: %s for the runs of all models, without their weights; %s", device, _limit(limit), _free(device))


def _limit(limit: int | None) -> str:
    return f"at most {limit // MIB} MiB" if limit else "no limit of memory (set GPU_MEMORY to share it with others)"


def _free(device: int) -> str:
    try:
        free, total = free_and_total(device)
    except CudaError as error:
        return f"what is free is unknown ({error})"
    return f"{free // MIB} of {total // MIB} MiB are free now"
