"""The arena that all sessions on a GPU share. Without a GPU, only what is asked of ONNX Runtime can be tested."""

import logging

import onnxruntime
import pytest

from service.engine import arenas
from service.engine.arenas import share_arena
from service.engine.cuda_runtime import CudaError
from service.engine.options import EngineOptions
from service.engine.providers import CPU, CUDA

MIB = 2**20


@pytest.fixture(autouse=True)
def _fresh():
    share_arena.cache_clear()
    yield
    share_arena.cache_clear()


@pytest.fixture
def registered(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    asked = []
    monkeypatch.setattr(onnxruntime, "create_and_register_allocator_v2", lambda *how: asked.append(how))
    monkeypatch.setattr(arenas, "free_and_total", lambda device: (60 * MIB, 80 * MIB))
    return asked


def test_each_gpu_has_one_arena_with_the_limit_of_the_setting(registered, caplog):
    for device in (0, 1, 0, 1):
        share_arena(device, 3000 * MIB)
    assert [(provider, options) for provider, _, options, _ in registered] == [
        (CUDA, {"device_id": "0"}), (CUDA, {"device_id": "1"})
    ]  # fmt: skip
    assert [arena.max_mem for *_, arena in registered] == [3000 * MIB] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"GPU {device}: at most 3000 MiB for the runs of all models, without their weights; 60 of 80 MiB are free now"
        for device in (0, 1)
    ]


def test_without_a_limit_the_log_says_so(registered, caplog, monkeypatch):
    def unknown(device):
        raise CudaError("cudaMemGetInfo failed with status 3")

    monkeypatch.setattr(arenas, "free_and_total", unknown)
    share_arena(0)
    assert [arena.max_mem for *_, arena in registered] == [0]  # ONNX Runtime's word for no limit
    assert "no limit of memory (set GPU_MEMORY to share it with others)" in caplog.text
    assert "what is free is unknown (cudaMemGetInfo failed with status 3)" in caplog.text


def test_an_arena_that_cannot_be_shared_is_reported_and_nothing_fails(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no such provider\nmore lines")

    monkeypatch.setattr(onnxruntime, "create_and_register_allocator_v2", fails)
    share_arena(0, 100 * MIB)
    share_arena(0, 100 * MIB)
    assert [record.getMessage() for record in caplog.records] == [
        "every session keeps memory of its own on GPU 0, and GPU_MEMORY has no effect: no such provider"
    ]


def test_shapes_are_fixed_on_cuda_unless_the_setting_decides_otherwise():
    default = EngineOptions(fixed_shapes=None)
    assert (default.fixes_shapes(CUDA), default.fixes_shapes(CPU)) == (True, False)
    for chosen in (True, False):
        options = EngineOptions(fixed_shapes=chosen)
        assert (options.fixes_shapes(CUDA), options.fixes_shapes(CPU)) == (chosen, chosen)
