"""For which GPUs a library holds code. CUDA's compiler stores that code in the library, as containers called fatbins.

A container begins with a header of 16 bytes: magic number, version (1), its own size, and the size of all entries. An
entry begins with its kind (1 PTX, which the driver can compile for later GPUs; 2 SASS, machine code for one
architecture), the size of its header, the size of its code, and at byte 28 the architecture, such as 90 for sm_90.
NVIDIA does not document this layout. So what is read here only explains why a GPU failed its check (probe.py) and never
decides whether it is used.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER = struct.Struct("<IHHQ")  # magic, version, size of this header, size of the entries
ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, size of this header, size of the code, architecture
PTX, SASS = 1, 2


class Entry(NamedTuple):
    """An entry: its kind (PTX or SASS), its architecture, and the places of its code in the library."""

    kind: int
    architecture: int
    begin: int
    end: int


class Code(NamedTuple):
    """The architectures for which there is SASS and PTX; 90 stands for sm_90."""

    sass: frozenset[int]
    ptx: frozenset[int]

    def serves(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability can run it.

        SASS runs on GPUs of the same major version and of an equal or later minor version, PTX on all later ones.
        """
        major, minor = capability
        sass = any(each // 10 == major and each % 10 <= minor for each in self.sass)
        return sass or any(each <= 10 * major + minor for each in self.ptx)

    def __str__(self) -> str:
        names = [f"sm_{each}" for each in sorted(self.sass)] + [f"PTX of sm_{each}" for each in sorted(self.ptx)]
        return ", ".join(names) or "no GPU"


def read(library: Path) -> Code:
    """The architectures for which `library` holds code. Raises OSError if it cannot be read."""
    found: dict[int, set[int]] = {PTX: set(), SASS: set()}
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for entry in entries(content):
            if any(content[entry.begin : min(entry.end, entry.begin + 8)]):  # zeros in place of code cannot run
                found[entry.kind].add(entry.architecture)
    return Code(frozenset(found[SASS]), frozenset(found[PTX]))


def entries(content: mmap.mmap | bytearray | bytes) -> Iterator[Entry]:
    """Every entry of a library, in order."""
    place = content.find(MAGIC)
    while 0 <= place <= len(content) - CONTAINER.size:
        _, version, header, size = CONTAINER.unpack_from(content, place)
        end = place + header + size
        if version != 1 or header != CONTAINER.size or end > len(content):  # the same four bytes in other data
            place = content.find(MAGIC, place + len(MAGIC))
            continue
        entry = place + header
        while entry + ENTRY.size <= end:
            kind, _, entry_header, code, architecture = ENTRY.unpack_from(content, entry)
            begin = entry + entry_header
            if entry_header < ENTRY.size or begin + code > end:  # not an entry
                break
            if kind in (PTX, SASS):
                yield Entry(kind, architecture, begin, begin + code)
            entry = begin + code
        place = content.find(MAGIC, end)
