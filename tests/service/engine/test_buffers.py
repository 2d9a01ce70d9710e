"""Buffers are used again, hold nothing of an earlier batch, and are pinned if the GPU's library allows it."""

import ctypes
import gc
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import buffers, cuda_runtime
from service.engine.buffers import Buffers, fill
from service.images.fit import Canvas


@st.composite
def batches(draw):
    """(rows, canvas, sizes of the images)"""
    canvas = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    size = st.tuples(st.integers(1, canvas[0]), st.integers(1, canvas[1]))
    sizes = draw(st.lists(size, min_size=1, max_size=4))
    return len(sizes) + draw(st.integers(0, 2)), canvas, sizes


@pytest.mark.contract("1.2")
@pytest.mark.contract("5.7")
@settings(deadline=None)
@given(st.lists(batches(), min_size=1, max_size=6))
def test_no_byte_of_one_batch_is_left_in_the_next(kinds):
    reused = Buffers(pins=False)
    for number, (rows, canvas, sizes) in enumerate(kinds, start=1):
        images = [Canvas(np.full((h, w, 3), number, np.uint8), canvas, w, h) for h, w in sizes]
        shape = (rows, *canvas, 3)
        buffer = reused.take(int(np.prod(shape)))
        stacked = buffer[: int(np.prod(shape))].reshape(shape)
        fill(stacked, images)
        for row, (h, w) in enumerate(sizes):
            assert (stacked[row, :h, :w] == number).all()
        assert stacked.sum() == number * 3 * sum(h * w for h, w in sizes)  # so everything else is 0
        buffer[:] = 255  # whatever a run might leave
        reused.give_back(buffer)


def test_a_buffer_is_used_again_and_large_enough_for_every_batch_so_far():
    pool = Buffers(pins=False)
    large = pool.take(1000)
    pool.give_back(large)
    small = pool.take(10)
    assert small is large
    second = pool.take(10)  # the first is in use
    assert len(second) == 1000
    pool.give_back(small)
    pool.give_back(second)
    larger = pool.take(2000)
    assert len(larger) == 2000
    pool.give_back(larger)
    pool.give_back(second)  # too small from now on, so it is dropped
    assert [len(pool.take(10)), len(pool.take(10))] == [2000, 2000]


def test_reserved_buffers_are_there_before_they_are_needed(monkeypatch):
    pool = Buffers(pins=False)
    pool.reserve(2, 1000)
    monkeypatch.setattr(buffers.np, "zeros", lambda *_, **__: pytest.fail("a request waited for memory"))
    assert [len(pool.take(10)), len(pool.take(1000))] == [1000, 1000]


def test_memory_that_cannot_be_pinned_is_replaced_by_ordinary_memory_with_one_warning(monkeypatch, caplog):
    class NoLibrary:
        def cudaHostAlloc(self, *_):  # noqa: N802  CUDA's name
            return 2  # cudaErrorMemoryAllocation

    monkeypatch.setattr(cuda_runtime, "_library", NoLibrary)
    pool = Buffers(pins=True)
    for _ in range(3):
        assert len(pool.take(100)) == 100
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "images are copied to the GPU from ordinary memory, more slowly: cudaHostAlloc failed with status 2"
    ]


def test_pinned_memory_lives_as_long_as_the_last_view_of_it(monkeypatch):
    class Runtime:
        """Memory of the C library in place of CUDA's."""

        held: dict[int, object] = {}  # noqa: RUF012  a test double with one instance

        def cudaHostAlloc(self, address, size, flags):  # noqa: N802
            assert flags.value == cuda_runtime.PORTABLE
            memory = ctypes.create_string_buffer(size.value)
            address._obj.value = ctypes.addressof(memory)  # noqa: SLF001  what a C function does through the pointer
            self.held[address._obj.value] = memory  # noqa: SLF001
            return 0

        def cudaFreeHost(self, address):  # noqa: N802
            del self.held[address.value]
            return 0

    runtime = Runtime()
    monkeypatch.setattr(cuda_runtime, "_library", lambda: runtime)
    pool = buffers.Buffers(pins=True)
    buffer = pool.take(12)
    assert [*runtime.held] == [buffer.ctypes.data]
    view = buffer.reshape(3, 4)[1:]
    del buffer
    gc.collect()
    view[:] = 7
    assert len(runtime.held) == 1
    del view
    gc.collect()
    assert runtime.held == {}


def test_a_missing_cuda_library_is_named(monkeypatch):
    def missing():
        raise OSError("no such file")

    monkeypatch.setattr(cuda_runtime, "_library", missing)
    with pytest.raises(cuda_runtime.CudaError, match=r"runtime library cannot be used \(OSError\)"):
        cuda_runtime.free_and_total(0)
