"""The check of a device: its expected values on the CPU provider, and what it says about GPUs that fail.

There may be no GPU here. A session on the CPU that calls itself CUDA's stands in for one.
"""

import numpy as np
import onnxruntime
import pytest

from service.engine import gpu, gpu_code, probe
from service.engine.gpu import Gpu, NoGpuError
from service.engine.gpu_code import Code
from service.engine.probe import CPU, CUDA

H100 = Gpu("NVIDIA H100", (9, 0), "580.95.05", (13, 0))
V100 = H100._replace(name="Tesla V100", capability=(7, 0))
REAL = onnxruntime.InferenceSession


class StandIn:
    """A session that calls itself CUDA's and runs on the CPU; `change` may spoil its results or raise an error."""

    providers = (CUDA, CPU)

    def __init__(self, graph, options, providers, enable_fallback) -> None:
        ((name, settings),) = providers
        assert (name, settings["use_tf32"]) == (CUDA, "0")
        assert enable_fallback == 0  # otherwise a failed kernel would run again on the CPU, and nobody would know
        self.session = REAL(graph, options, providers=[CPU])

    def get_providers(self):
        return list(self.providers)

    def run(self, names, given):
        return self.change(dict(zip(names, self.session.run(names, given), strict=True)))

    def change(self, values):
        return list(values.values())


@pytest.fixture
def gpu_machine(monkeypatch):
    """A machine with an H100 and all libraries."""
    monkeypatch.setattr(gpu, "needed_cuda", lambda: (13, 0))
    monkeypatch.setattr(gpu, "describe", lambda _: H100)
    monkeypatch.setattr(gpu, "missing_libraries", lambda _: [])
    monkeypatch.setattr(gpu, "cuda_version", lambda _: "13.0")
    monkeypatch.setattr(gpu, "cudnn_version", lambda: "9.14.0")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", StandIn)
    monkeypatch.setattr(gpu_code, "read", lambda _: Code(frozenset({75, 80, 90}), frozenset()))
    return monkeypatch


def spoil(monkeypatch, change) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", type("Spoilt", (StandIn,), {"change": change}))


def test_the_expected_values_are_those_of_the_cpu_provider():
    report = probe.check(CPU)
    assert report.fault is None
    assert report.seconds > 0


def test_the_expected_values_of_topk_and_nms_are_known_without_a_run():
    values = probe.expected(probe.inputs())
    assert values["best"].tolist() == [list(range(1999, 1699, -1))]  # scores are 0 to 1999 in some order
    assert values["kept"][:3].tolist() == [[0, 0, 0], [0, 0, 2], [0, 0, 4]]
    assert values["convolution"].shape == (1, 16, 24, 24)
    assert float(np.abs(values["convolution"]).max()) < 2**11  # exact, even if TF32 rounded the sums


def test_a_gpu_that_computes_is_described(gpu_machine):
    report = probe.check(CUDA, 3)
    assert report.fault is None
    assert str(report) == "GPU 3: NVIDIA H100, sm_90, driver 580.95.05 (CUDA 13.0), CUDA 13.0, cuDNN 9.14.0"
    assert report.facts() == {
        "gpu": "NVIDIA H100",
        "architecture": "sm_90",
        "driver": "580.95.05",
        "driver_cuda": "13.0",
        "cuda": "13.0",
        "cudnn": "9.14.0",
        "fault": "",
    }


@pytest.mark.contract("3.7")
@pytest.mark.parametrize("name", ["convolution", "product", "best", "places", "kept"])
def test_a_kernel_that_computes_one_wrong_value_is_named(gpu_machine, name):
    def change(_, values):
        values[name] = values[name].copy()
        values[name].flat[7] += 1
        return list(values.values())

    spoil(gpu_machine, change)
    fault = probe.check(CUDA).fault
    assert (fault.word, fault.reason) == ("values", f"it computes wrong values ({name})")


def test_missing_rows_are_wrong_values(gpu_machine):
    spoil(gpu_machine, lambda _, values: list((values | {"kept": values["kept"][:-1]}).values()))
    assert probe.check(CUDA).fault.word == "values"


def test_a_kernel_that_fails_is_a_fault_without_the_librarys_words(gpu_machine, caplog):
    def change(*_):
        raise RuntimeError("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED\nhostname=secret")

    spoil(gpu_machine, change)
    fault = probe.check(CUDA).fault
    assert fault.word == "kernels"
    assert "CUDNN_FE" not in fault.reason + fault.remedy
    assert "CUDNN_FE failure 11" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", "memory"),
        ("CUDA failure 214: uncorrectable ECC error encountered", "memory"),
        ("CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable", "busy"),
        ("CUDA failure 209: no kernel image is available", "architecture"),  # of cuDNN or cuBLAS: ours has code for it
        ("CUDA failure 700: an illegal memory access was encountered", "kernels"),
        ("no known words", "kernels"),
    ],
)
def test_a_message_of_onnx_runtime_becomes_a_fault_with_a_remedy(gpu_machine, message, word):
    def change(*_):
        raise RuntimeError(message)

    spoil(gpu_machine, change)
    fault = probe.check(CUDA).fault
    assert fault.word == word
    assert fault.remedy


@pytest.mark.parametrize("wrong", [False, True])
def test_a_gpu_for_which_the_provider_has_no_code_is_told_so(gpu_machine, wrong):
    def change(_, values):
        if wrong:
            return [np.zeros_like(value) for value in values.values()]
        raise RuntimeError("CUDA failure 209: no kernel image is available for execution on the device")

    spoil(gpu_machine, change)
    gpu_machine.setattr(gpu, "describe", lambda _: V100)
    fault = probe.check(CUDA).fault
    assert fault.word == "architecture"
    assert fault.reason.endswith("has no code for sm_70, only for sm_75, sm_80, sm_90")
    assert onnxruntime.__version__ in fault.reason
    # A file that cannot be understood explains nothing.
    gpu_machine.setattr(gpu_code, "read", lambda _: Code(frozenset(), frozenset()))
    unexplained = probe.check(CUDA).fault
    assert "sm_70" not in unexplained.reason


def test_a_gpu_that_computes_is_used_although_the_provider_seems_to_have_no_code_for_it(gpu_machine):
    gpu_machine.setattr(gpu, "describe", lambda _: V100)
    assert probe.check(CUDA).fault is None


@pytest.mark.parametrize(
    ("version", "words"), [("570.86.10", "driver 570.86.10 supports"), ("", "the driver supports")]
)
def test_an_old_driver_is_a_fault_before_anything_runs(gpu_machine, version, words):
    gpu_machine.setattr(onnxruntime, "InferenceSession", None)  # using it would be an error
    gpu_machine.setattr(gpu, "describe", lambda _: H100._replace(driver=version, driver_cuda=(12, 8)))
    report = probe.check(CUDA)
    assert report.fault.word == "driver"
    assert words in report.fault.reason
    assert "supports CUDA 12.8, but" in report.fault.reason
    assert report.fault.reason.endswith("needs CUDA 13.0")
    assert "580" in report.fault.remedy


def test_a_driver_of_an_earlier_minor_version_is_new_enough(gpu_machine):
    """The minor versions of CUDA are compatible with each other (CUDA's guide on compatibility)."""
    gpu_machine.setattr(gpu, "needed_cuda", lambda: (13, 2))
    assert probe.check(CUDA).fault is None


def test_a_missing_library_is_named(gpu_machine):
    gpu_machine.setattr(gpu, "missing_libraries", lambda _: ["libcublas.so.13", "libcudnn.so.9"])
    fault = probe.check(CUDA).fault
    assert fault.word == "libraries"
    assert fault.reason.startswith("libcublas.so.13, libcudnn.so.9 cannot be loaded")
    assert "[cuda]" in fault.remedy


def test_a_provider_that_does_not_load_is_a_fault(gpu_machine):
    gpu_machine.setattr(StandIn, "providers", (CPU,))  # ONNX Runtime left CUDA out without an exception
    assert probe.check(CUDA).fault.word == "libraries"


def test_a_gpu_that_the_driver_cannot_describe_is_a_fault(gpu_machine):
    def describe(_):
        raise NoGpuError("no NVIDIA GPU is visible", "check nvidia-smi")

    gpu_machine.setattr(gpu, "describe", describe)
    assert probe.check(CUDA).fault == ("driver", "no NVIDIA GPU is visible", "check nvidia-smi")
