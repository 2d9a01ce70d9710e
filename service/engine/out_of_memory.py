"""Tells by its message whether an error means that memory ran out. ONNX Runtime has no exception type for that."""

from __future__ import annotations

import re

# The words of ONNX Runtime's arena, C++, CUDA, cuBLAS, and cuDNN. cuDNN 8 says ALLOC_FAILED, cuDNN 9
# HOST_ALLOCATION_FAILED or DEVICE_ALLOCATION_FAILED. 2 is CUDA's number for it.
_NO_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad_alloc|BFCArena|ALLOC(ATION)?_FAILED|MEMORY_?ALLOCATION|CUDA failure 2\b"
    r"|available memory of \d+ is smaller than requested",
    re.IGNORECASE,
)
# cuDNN 9 prepares a plan for each convolution and shape. If it finds no memory for it, the message has only the number
# of the step that failed: creating the plan (6), running it (7), choosing it (8), or a call of CUDA (10) or cuDNN (11).
_FAILED_PLAN = re.compile(r"CUDNN_FE failure (6|7|8|10|11)\b")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def is_failed_plan(error: BaseException) -> bool:
    """Whether cuDNN could not prepare or run a convolution, without saying why.

    The warm-up has shown that the graph's convolutions can be prepared. If a small run still succeeds, a lack of memory
    is the likely cause.
    """
    return _FAILED_PLAN.search(str(error)) is not None
