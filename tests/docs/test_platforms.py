"""Which ONNX Runtime a platform gets: one of the two packages, never both, because they write to the same folder."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def needed(system: str, machine: str, extra: str) -> set[str]:
    listed = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    environment = {"sys_platform": system, "platform_machine": machine, "extra": extra}
    requirements = map(Requirement, listed)
    return {each.name for each in requirements if each.marker is None or each.marker.evaluate(environment)} & {
        "onnxruntime",
        "onnxruntime-gpu",
    }


@pytest.mark.parametrize("extra", ["", "cuda"])
@pytest.mark.parametrize(
    ("system", "machine", "package"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime-gpu"),  # Grace, DGX Spark; Graviton and Raspberry Pi run it on the CPU
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("win32", "ARM64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
        ("linux", "riscv64", "onnxruntime"),
    ],
)
def test_every_platform_gets_exactly_one_onnx_runtime(system, machine, package, extra):
    assert needed(system, machine, extra) == {package}
