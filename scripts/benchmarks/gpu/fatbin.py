"""Removes the machine code of other GPU architectures from a CUDA library, so that it can travel.

A CUDA library holds its kernels once for each architecture, in containers. A container is a header and a sequence of
entries, each with a header of its own that names its architecture. The CUDA runtime loads the entry that fits the GPU
and reads only the headers of the others. So their contents may be zero, which compresses to almost nothing, and nothing
in the file has to move.

All numbers are little-endian. A container's header: magic u32, version u16, bytes of this header u16, bytes of all
entries u64. An entry's header: kind u16 (1 text, 2 machine code), version u16, bytes of this header u32, bytes of the
contents u64, then at byte 28 the architecture u32 (90 for sm_90 and sm_90a).
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"\x50\xed\x55\xba"
KINDS = (1, 2)
_CONTAINER = struct.Struct("<4sHHQ")
_ENTRY = struct.Struct("<HHIQ12xI")
MOST_HEADER = 4096  # bytes; real headers have 64 to about 100


@dataclass(frozen=True)
class Entry:
    """The code for one architecture: the contents are the bytes from `begin` to `end` of the file."""

    architecture: int
    begin: int
    end: int


@dataclass(frozen=True)
class Thinned:
    """kept, zeroed: bytes of machine code, by architecture."""

    kept: Counter[int]
    zeroed: Counter[int]


def entries(library: bytes | bytearray) -> Iterator[Entry]:
    """The entries of all containers. The magic number also occurs elsewhere; a place that does not fit is passed over.

    Raises ValueError if a container is damaged.
    """
    place = library.find(MAGIC)
    while place >= 0:
        after = _end_of_container(library, place)
        if after is None:
            place = library.find(MAGIC, place + len(MAGIC))
            continue
        yield from _entries(library, place + _header_bytes(library, place), after)
        place = library.find(MAGIC, after)


def thin(library: bytearray, architecture: int) -> Thinned:
    """Zeroes the contents of every entry for another architecture, in place.

    architecture: such as 90.
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


def _header_bytes(library: bytes | bytearray, place: int) -> int:
    return int(_CONTAINER.unpack_from(library, place)[2])


def _end_of_container(library: bytes | bytearray, place: int) -> int | None:
    """Where the container that begins at `place` ends; None if there is no container."""
    if place + _CONTAINER.size > len(library):
        return None
    _, version, header, size = _CONTAINER.unpack_from(library, place)
    end = place + header + size
    fits = version == 1 and _CONTAINER.size <= header <= MOST_HEADER and end <= len(library)
    return int(end) if fits else None


def _entries(library: bytes | bytearray, place: int, end: int) -> Iterator[Entry]:
    while place < end:
        if place + _ENTRY.size > end:
            raise ValueError(
                f"a container of machine code is damaged at byte {place}: {end - place} bytes are left over"
            )
        kind, _, header, size, architecture = _ENTRY.unpack_from(library, place)
        begin = place + header
        if kind not in KINDS or not _ENTRY.size <= header <= MOST_HEADER or begin + size > end:
            raise ValueError(f"a container of machine code is damaged at byte {place}: this is not an entry's header")
        yield Entry(architecture, begin, begin + size)
        place = begin + size
