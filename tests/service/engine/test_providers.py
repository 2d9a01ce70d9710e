from pathlib import Path

import onnxruntime
import pytest

from service.engine import gpu, probe
from service.engine.gpu import DriverFailedError, NoGpuError
from service.engine.probe import Fault, ProbeReport
from service.engine.providers import (
    CPU,
    CUDA,
    ProviderUnavailableError,
    choose,
    open_session,
    pick_provider,
    session_options,
)

GRAPH = probe.GRAPH.read_bytes()
OLD = Fault("driver", "the driver supports CUDA 12.8", "update it")


@pytest.fixture
def gpu_machine(monkeypatch):
    """A machine with ONNX Runtime for CUDA and four GPUs; faults[index] is what the check of a GPU finds."""
    faults = [None] * 4
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(gpu, "count", lambda: len(faults))
    monkeypatch.setattr(probe, "check", lambda _, index: ProbeReport(index, "NVIDIA L4", fault=faults[index]))
    return faults


def test_cuda_is_used_if_a_gpu_computes(gpu_machine, caplog):
    with caplog.at_level("INFO"):
        choice = choose()
    assert (choice.provider, choice.usable, choice.why_cpu) == (CUDA, [0, 1, 2, 3], "")
    assert [record.levelname for record in caplog.records] == ["INFO"] * 4  # each GPU is named once
    assert "GPU 2: NVIDIA L4" in caplog.text
    assert pick_provider() == pick_provider(require_cuda=True) == CUDA


@pytest.mark.contract("3.7")
@pytest.mark.parametrize("required", [False, True])
def test_a_gpu_that_fails_is_left_out_and_named(gpu_machine, caplog, required):
    gpu_machine[0] = OLD
    choice = choose(required, most_gpus=2)
    assert (choice.provider, choice.usable) == (CUDA, [1, 2])
    assert len(choice.gpus) == 3  # the fourth is not needed, so it was not checked
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "GPU 0: NVIDIA L4" in record.getMessage()
    assert record.getMessage().endswith("cannot be used: the driver supports CUDA 12.8; update it")


@pytest.mark.contract("3.7")
def test_the_cpu_is_used_if_no_gpu_computes_unless_cuda_is_required(gpu_machine, caplog):
    gpu_machine[:] = [OLD] * 4
    with caplog.at_level("INFO"):
        choice = choose()
    *faults, last = (record.getMessage() for record in caplog.records)
    assert [fault[:6] for fault in faults] == ["GPU 0:", "GPU 1:", "GPU 2:", "GPU 3:"]
    assert last == "running on the CPU: none of 4 GPUs can be used"
    assert (choice.provider, choice.usable, len(choice.gpus)) == (CPU, [], 4)
    assert choice.why_cpu.endswith("cannot be used: the driver supports CUDA 12.8; update it")
    with pytest.raises(ProviderUnavailableError, match=r"REQUIRE_CUDA is set, but GPU 0: NVIDIA L4.*12\.8; update it"):
        choose(require_cuda=True)


def no_gpu() -> int:
    raise NoGpuError("no NVIDIA GPU is visible", "check nvidia-smi")


def broken_driver() -> int:
    raise DriverFailedError("NVIDIA's driver does not start: cuInit returns 999", "check nvidia-smi")


def test_a_driver_that_does_not_start_is_a_warning(gpu_machine, monkeypatch, caplog):
    monkeypatch.setattr(gpu, "count", broken_driver)
    assert choose() == (CPU, (), "NVIDIA's driver does not start: cuInit returns 999; check nvidia-smi")
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "cuInit returns 999" in record.getMessage()


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (onnxruntime, "get_available_providers", lambda: [CPU], "built without CUDA.*onnxruntime-gpu"),
        (gpu, "count", no_gpu, "no NVIDIA GPU is visible.*nvidia-smi"),
    ],
)
def test_the_cpu_is_used_if_there_is_no_gpu_and_none_is_required(
    gpu_machine, monkeypatch, caplog, place, name, value, reason
):
    monkeypatch.setattr(place, name, value)
    with caplog.at_level("INFO"):
        assert pick_provider() == CPU
    (record,) = caplog.records
    assert record.getMessage().startswith("running on the CPU: ")
    with pytest.raises(ProviderUnavailableError, match=f"REQUIRE_CUDA is set, but .*{reason}"):
        pick_provider(require_cuda=True)


@pytest.mark.skipif(pick_provider() == CUDA, reason="this machine has a GPU")
def test_requiring_cuda_fails_on_a_machine_without_a_gpu():
    with pytest.raises(ProviderUnavailableError, match="REQUIRE_CUDA"):
        pick_provider(require_cuda=True)


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
        open_session(GRAPH, CPU, session_options(1))
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()  # the first session may open files that are never closed
    assert open_files() == before


def test_a_session_can_be_opened_on_systems_without_files_in_memory(monkeypatch):
    monkeypatch.delattr("os.memfd_create", raising=False)
    assert open_session(GRAPH, CPU, session_options(1)).get_providers() == [CPU]


class Opened:
    """A session of which only the providers are asked."""

    def __init__(self, providers):
        self._providers = providers

    def get_providers(self):
        return self._providers


def test_a_session_on_cuda_plans_no_block_for_a_whole_run(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers, **_: (
            asked.update({len(providers): options.enable_mem_pattern}) or Opened([CUDA, CPU])
        ),
    )
    open_session(GRAPH, CUDA, session_options(1))
    open_session(GRAPH, CPU, session_options(1))
    assert asked == {2: False, 1: True}


def test_a_session_that_silently_lacks_cuda_is_an_error(monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Opened([CPU]))
    with pytest.raises(ProviderUnavailableError, match=f"did not load {CUDA}"):
        open_session(GRAPH, CUDA, session_options(1))
