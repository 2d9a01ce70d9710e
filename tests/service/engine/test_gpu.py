"""What the driver says, asked of a small library in its place, which a C compiler makes here."""

import ctypes
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import onnxruntime
import pytest

from service.engine import gpu
from service.engine.gpu import NoGpuError

# One library in place of all: the driver, CUDA and cuDNN. The environment says how it behaves.
SOURCE = """
#include <stdlib.h>
#include <string.h>
static int number(const char *name) { return atoi(getenv(name)); }
int cuInit(unsigned flags) { return number("FAKE_INIT"); }
int cuDeviceGetCount(int *count) { *count = number("FAKE_GPUS"); return *count ? 0 : 100; }
int cuDeviceGet(int *device, int index) { *device = 70 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 71 ? "the second" : "the first", length);
    return number("FAKE_NAME");
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 12 : attribute == 76 ? 1 : -1;
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }
size_t cudnnGetVersion(void) { return 91405; }
"""
LIBRARIES = {"libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not (compiler := shutil.which("cc") or shutil.which("gcc")) or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "fake.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", folder / "fake.so", folder / "fake.c"], check=True)
    return ctypes.CDLL(str(folder / "fake.so"))


@pytest.fixture
def machine(library, monkeypatch):
    """A machine with two GPUs and all libraries but cuDNN."""
    there = set(LIBRARIES)

    def load(file: str):
        if file not in there:
            raise OSError
        return library

    for name, value in {"FAKE_INIT": 0, "FAKE_GPUS": 2, "FAKE_NAME": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it now fails as if it were not installed
    return there


def test_a_gpu_is_described_by_its_driver(machine):
    assert gpu.count() == 2
    assert gpu.describe(0).name == "the first"
    found = gpu.describe(1)
    assert found == gpu.Gpu("the second", (12, 1), "", (13, 1))  # 13010 is CUDA 13.1
    assert found.architecture == "sm_121"


def test_the_version_of_the_driver_is_that_of_nvidias_management_library(machine, monkeypatch):
    nvml = SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.95.05")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu.describe(0).driver == "580.95.05"


@pytest.mark.parametrize("index", [-1, 2])
def test_a_gpu_that_does_not_exist_is_an_error(machine, index):
    with pytest.raises(NoGpuError, match="no NVIDIA GPU is visible"):
        gpu.describe(index)


@pytest.mark.parametrize(
    ("result", "gpus", "reason", "remedy"),
    [
        (0, 0, "no NVIDIA GPU is visible", "nvidia-smi.*container.*CUDA_VISIBLE_DEVICES"),
        (100, 0, "no NVIDIA GPU is visible", "nvidia-smi"),  # CUDA_ERROR_NO_DEVICE
        (802, 2, "does not start: the system is not ready", "Fabric Manager"),
        (803, 2, "different versions", "restart"),
        (804, 2, "compatibility package", "cuda-compat"),
        (999, 2, "cuInit returns 999", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_start_says_why_and_what_to_do(machine, monkeypatch, result, gpus, reason, remedy):
    monkeypatch.setenv("FAKE_INIT", str(result))
    monkeypatch.setenv("FAKE_GPUS", str(gpus))
    with pytest.raises(NoGpuError, match=reason) as caught:
        gpu.count()
    assert re.search(remedy, caught.value.remedy)


def test_a_gpu_that_the_driver_cannot_describe_is_an_error(machine, monkeypatch):
    monkeypatch.setenv("FAKE_NAME", "999")
    with pytest.raises(NoGpuError, match=r"does not describe GPU 1 \(error 999\)"):
        gpu.describe(1)


def test_without_a_driver_there_is_no_gpu(machine):
    machine.remove("libcuda.so.1")
    with pytest.raises(NoGpuError, match="no NVIDIA GPU is visible"):
        gpu.count()


def test_the_libraries_that_cannot_be_loaded_are_named_and_the_others_have_versions(machine):
    assert gpu.missing_libraries(13) == ["libcudnn.so.9"]
    assert (gpu.cuda_version(13), gpu.cudnn_version()) == ("13.2", "")
    machine.add("libcudnn.so.9")
    assert gpu.missing_libraries(13) == []
    assert gpu.cudnn_version() == "9.14.5"  # 91405
    assert gpu.missing_libraries(12) == ["libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12"]
    assert gpu.cuda_version(12) == ""


@pytest.mark.parametrize(("built_with", "expected"), [("13.0", (13, 0)), ("12", (12, 0)), ("", None), (None, None)])
def test_the_needed_version_of_cuda_is_that_of_the_installed_onnx_runtime(monkeypatch, built_with, expected):
    monkeypatch.setattr(onnxruntime, "cuda_version", built_with, raising=False)
    assert gpu.needed_cuda() == expected
