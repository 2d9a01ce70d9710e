"""The list of CUDA kernels belongs to the installed version of ONNX Runtime."""

import json
import logging

import onnxruntime
import pytest

from faster_rcnn.graph import cuda_kernels
from faster_rcnn.graph.cuda_kernels import COMMAND, FILE, Kernel, known_kernels, outdated, registered_kernels
from service.engine.providers import CUDA, pick_provider


def test_a_kernel_without_a_last_version_supports_only_its_first_version() -> None:
    assert [Kernel(12, 21, {}).serves(version) for version in (11, 12, 13, 21, 22)] == [False, True, True, True, False]
    assert [Kernel(12, 2**31 - 1, {}).serves(version) for version in (11, 12, 22)] == [False, True, False]


def test_the_list_is_for_the_installed_onnx_runtime() -> None:
    """Fails after an upgrade until the list is written again, on a machine with a GPU."""
    assert outdated(json.loads(FILE.read_text())["onnxruntime"], onnxruntime.__version__) == ""


def test_an_outdated_list_names_both_versions_and_the_remedy() -> None:
    fault = outdated("1.31.1", "1.32.0")
    assert "lists the CUDA kernels of ONNX Runtime 1.31.1, and 1.32.0 is installed" in fault
    assert fault.endswith(COMMAND)
    assert f"python -m {cuda_kernels.__name__}" == COMMAND


def test_an_outdated_list_is_reported_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "99.0.0")
    known_kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            first, second = known_kernels(), known_kernels()
    finally:
        known_kernels.cache_clear()
    assert first == second
    assert "Conv" in first
    assert [record.getMessage().count("99.0.0") for record in caplog.records] == [1]


@pytest.mark.skipif(pick_provider() != CUDA, reason="needs a GPU: without one the provider does not list its kernels")
def test_the_list_is_the_providers_own() -> None:
    assert registered_kernels() == known_kernels()
