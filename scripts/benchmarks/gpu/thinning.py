"""Removes the code of other GPU architectures from a CUDA library, so that it can travel.

The CUDA runtime loads the code for the GPU's architecture, and of the others reads only the headers
(service/engine/gpu_code.py). So their code may be zero, which compresses to almost nothing, and nothing in the file has
to move.
"""

from collections import Counter
from dataclasses import dataclass

from service.engine.gpu_code import entries


@dataclass(frozen=True)
class Thinned:
    """kept, zeroed: bytes of code, by architecture."""

    kept: Counter[int]
    zeroed: Counter[int]


def thin(library: bytearray, architecture: int) -> Thinned:
    """Zeroes the code for every other architecture, in place.

    architecture: such as 90 for sm_90.
    Raises ValueError if the library has no code for it, because a GPU of that kind could then run nothing.
    """
    found = list(entries(library))
    if architecture not in {entry.architecture for entry in found}:
        has = ", ".join(f"sm_{one}" for one in sorted({entry.architecture for entry in found})) or "no GPU at all"
        raise ValueError(f"the library has no code for sm_{architecture}; it has code for {has}")
    result = Thinned(Counter(), Counter())
    for entry in found:
        size = entry.end - entry.begin
        if entry.architecture == architecture:
            result.kept[entry.architecture] += size
        else:
            library[entry.begin : entry.end] = bytes(size)
            result.zeroed[entry.architecture] += size
    return result
