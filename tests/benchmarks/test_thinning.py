"""Machine code in a made-up CUDA library: what is found, kept and zeroed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.thinning import thin
from service.engine.gpu_code import MAGIC, PTX, SASS, Entry, entries

HEADER = 64  # bytes of an entry's header, as nvcc writes it


def entry(architecture: int, code: bytes, kind: int = SASS) -> bytes:
    """Its header, which is kind, version, header bytes, code bytes, 12 bytes and architecture; then the code."""
    head = struct.pack("<HHIQ12xI", kind, 0x101, HEADER, len(code), architecture)
    return head.ljust(HEADER, b"\7") + code


def container(*parts: bytes) -> bytes:
    """Magic, version 1, 16 header bytes, bytes of all entries; then the entries."""
    return MAGIC + struct.pack("<HHQ", 1, 16, sum(map(len, parts))) + b"".join(parts)


def test_the_code_of_other_architectures_is_zeroed_and_nothing_moves():
    library = (
        b"ELF" + container(entry(80, b"\1" * 24), entry(90, b"\2" * 8)) + b"between" + container(entry(75, b"\3" * 5))
    )
    # b"ELF" 3, container's header 16, entry's header 64: the first code begins at 83 and ends at 107; the next header
    # ends at 171. Its 8 bytes end at 179; "between" ends at 186; 16 + 64 further, the last code begins at 266.
    assert list(entries(library)) == [Entry(SASS, 80, 83, 107), Entry(SASS, 90, 171, 179), Entry(SASS, 75, 266, 271)]
    thinned = bytearray(library)
    result = thin(thinned, 90)
    assert dict(result.kept) == {90: 8}
    assert dict(result.zeroed) == {80: 24, 75: 5}
    assert bytes(thinned) == library[:83] + bytes(24) + library[107:266] + bytes(5)


def test_ptx_is_code_of_its_architecture_too():
    thinned = bytearray(container(entry(90, b"\1" * 4), entry(120, b".version", PTX)))
    assert dict(thin(thinned, 90).zeroed) == {120: 8}


def test_an_architecture_without_code_is_refused_with_those_that_have_some():
    library = bytearray(container(entry(80, b"\1"), entry(86, b"\2")))
    with pytest.raises(ValueError, match=r"no code for sm_100; it has code for sm_80, sm_86"):
        thin(library, 100)
    with pytest.raises(ValueError, match="no GPU at all"):
        thin(bytearray(b"not a CUDA library"), 90)


@given(
    parts=st.lists(
        st.lists(st.tuples(st.sampled_from([75, 80, 90]), st.binary(max_size=40)), max_size=4), min_size=1, max_size=4
    ),
    noise=st.binary(max_size=30).filter(lambda noise: MAGIC[0] not in noise),
)
def test_only_the_code_of_one_architecture_is_left(parts, noise):
    parts = [*parts, [(90, b"kept")]]
    library = bytearray(noise.join(container(*(entry(arch, code) for arch, code in one)) for one in parts))
    before = bytes(library)
    thin(library, 90)
    found = list(entries(library))
    assert [one.architecture for one in found] == [arch for one in parts for arch, _ in one]
    for one, code in zip(found, [code for part in parts for _, code in part], strict=True):
        assert library[one.begin : one.end] == (code if one.architecture == 90 else bytes(len(code)))
        library[one.begin : one.end] = code
    assert bytes(library) == before
