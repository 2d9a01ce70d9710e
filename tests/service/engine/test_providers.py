import ctypes
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from service.engine import providers
from service.engine.providers import CPU, CUDA, ProviderUnavailableError, open_session, pick_provider, session_options


def driver(devices: int, initialised: int = 0) -> SimpleNamespace:
    """A CUDA driver library that reports `devices` GPUs; `initialised` is what its cuInit returns."""

    def count(place) -> int:
        place._obj.value = devices  # noqa: SLF001  the only way to the object behind ctypes.byref
        return 0

    return SimpleNamespace(cuInit=lambda _: initialised, cuDeviceGetCount=count)


def no_driver(_: str) -> None:
    raise OSError


@pytest.fixture
def gpu_machine(monkeypatch):
    """A machine with ONNX Runtime for CUDA, two GPUs and all libraries."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver(2))
    monkeypatch.setattr(providers, "open_session", lambda *_: SimpleNamespace(get_providers=lambda: [CUDA, CPU]))
    return monkeypatch


def no_session(*_: object) -> None:
    raise ValueError


def test_cuda_is_used_if_it_starts(gpu_machine):
    assert pick_provider() == pick_provider(require_cuda=True) == CUDA


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (onnxruntime, "get_available_providers", lambda: [CPU], "built without CUDA.*onnxruntime-gpu"),
        (ctypes, "CDLL", no_driver, "no NVIDIA GPU is visible.*nvidia-smi"),
        (ctypes, "CDLL", lambda _: driver(0), "no NVIDIA GPU is visible"),
        (ctypes, "CDLL", lambda _: driver(2, initialised=100), "no NVIDIA GPU is visible"),
        (providers, "open_session", no_session, r"does not load \(2 GPU\).*\[cuda\]"),
        (
            providers,
            "open_session",
            lambda *_: SimpleNamespace(
                get_providers=lambda: [CPU]
            ),  # ONNX Runtime fell back to the CPU without an exception
            "does not load",
        ),
    ],
)
def test_the_cpu_is_used_if_cuda_does_not_start_and_is_not_required(gpu_machine, place, name, value, reason):
    gpu_machine.setattr(place, name, value)
    assert pick_provider() == CPU
    with pytest.raises(ProviderUnavailableError, match=f"REQUIRE_CUDA is set, but .*{reason}"):
        pick_provider(require_cuda=True)


@pytest.mark.skipif(pick_provider() == CUDA, reason="this machine has a GPU")
def test_requiring_cuda_fails_on_a_machine_without_a_gpu():
    with pytest.raises(ProviderUnavailableError, match="REQUIRE_CUDA"):
        pick_provider(require_cuda=True)


def test_the_smallest_model_can_be_loaded_and_returns_its_input():
    session = open_session(providers.SMALLEST_MODEL, CPU, session_options(1))
    ((y,),) = session.run(None, {session.get_inputs()[0].name: [2.5]})
    assert y == 2.5


def test_threads_spin_only_in_a_run_that_is_alone():
    for runs_alone in (False, True):
        options = session_options(3, runs_alone)
        assert options.intra_op_num_threads == 3
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(runs_alone))


def test_bytes_that_are_not_a_model_raise_an_error_of_one_line():
    with pytest.raises(ValueError, match="ONNX Runtime cannot load it") as caught:
        open_session(b"not a model", CPU, session_options(1))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list a process's open files")
def test_opening_sessions_leaves_no_files_open():
    def open_files() -> int:
        open_session(providers.SMALLEST_MODEL, CPU, session_options(1))
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()  # the first session may open files that are never closed
    assert open_files() == before


def test_a_session_can_be_opened_on_systems_without_files_in_memory(monkeypatch):
    monkeypatch.delattr("os.memfd_create", raising=False)
    assert open_session(providers.SMALLEST_MODEL, CPU, session_options(1)).get_providers() == [CPU]
