"""For which GPUs a library holds code, read from libraries made here and from the installed ONNX Runtime."""

import platform
import re
import struct
from pathlib import Path

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import gpu_code
from service.engine.gpu_code import PTX, SASS, Code

LIMITS = Path(__file__).parents[3] / "docs" / "limits.md"


def entry(kind: int, architecture: int, code: bytes = b"machine code  16") -> bytes:
    """A header of 64 bytes, then the code."""
    return struct.pack("<HHIQ12xI", kind, 0x101, 64, len(code), architecture).ljust(64, b"\0") + code


def container(*entries: bytes) -> bytes:
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, sum(map(len, entries))) + b"".join(entries)


def read(folder: Path, content: bytes) -> Code:
    (folder / "library.so").write_bytes(content)
    return gpu_code.read(folder / "library.so")


def test_every_container_is_read(tmp_path):
    content = b"ELF" + container(entry(SASS, 75), entry(SASS, 90)) + bytes(24) + container(entry(PTX, 89)) + b"end"
    assert read(tmp_path, content) == Code(frozenset({75, 90}), frozenset({89}))


def test_code_that_was_overwritten_with_zeros_does_not_count(tmp_path):
    """A provider that is made smaller keeps the headers of what was removed."""
    content = container(entry(SASS, 75, bytes(100)), entry(SASS, 90))
    assert read(tmp_path, content).sass == {90}


def test_the_magic_number_in_other_data_is_passed_over(tmp_path):
    magic = struct.pack("<I", 0xBA55ED50)
    too_long = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40)
    not_entries = container(bytes(200))
    for decoy in (magic, magic + b"x" * 30, too_long, not_entries):
        assert read(tmp_path, decoy + container(entry(SASS, 86)) + decoy).sass == {86}, decoy


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_after_a_magic_number_are_read_without_an_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    read(folder, container(content))
    assert read(folder, container(entry(SASS, 75)) + content).sass >= {75}


@pytest.mark.parametrize(
    ("capability", "serves"),
    [
        ((7, 0), False),  # V100
        ((7, 5), True),  # T4
        ((8, 7), True),  # runs the code of sm_86, of the same major version
        ((9, 0), True),  # H100
        ((10, 0), False),  # B200
        ((12, 0), False),
    ],
)
def test_machine_code_runs_on_gpus_of_the_same_major_version_only(capability, serves):
    assert Code(frozenset({75, 86, 90}), frozenset()).serves(capability) is serves


def test_ptx_runs_on_later_gpus():
    code = Code(frozenset({75}), frozenset({90}))
    assert [code.serves(each) for each in ((7, 5), (8, 9), (9, 0), (12, 0))] == [True, False, True, True]
    assert str(code) == "sm_75, PTX of sm_90"


def test_the_documentation_lists_the_architectures_of_the_installed_provider():
    """The list belongs to a release of ONNX Runtime, so it is compared with the file itself."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    provider = folder / "libonnxruntime_providers_cuda.so"
    if not provider.exists():
        pytest.skip("this onnxruntime has no CUDA provider for Linux")
    machine = {"x86_64": "x86-64", "aarch64": "arm64"}[platform.machine()]
    start = re.escape(f"| {onnxruntime.__version__}, Linux {machine} |")
    row = re.search(rf"^{start}([^|]*)\|", LIMITS.read_text(), re.MULTILINE)
    assert row, f"docs/limits.md has no row for ONNX Runtime {onnxruntime.__version__} on {machine}"
    code = gpu_code.read(provider)
    assert set(map(int, re.findall(r"sm_(\d+)", row[1]))) == code.sass
    assert not code.ptx
