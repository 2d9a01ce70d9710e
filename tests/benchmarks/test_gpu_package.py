"""The package of GPU checks: its pieces, and the script that joins and unpacks them."""

import hashlib
import json
import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import packing, unpack
from benchmarks.workers import Failed
from service.engine.gpu_code import MAGIC

ROOT = Path(__file__).parents[2]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one file with 4000 bytes that do not compress, in pieces of 1000 bytes."""
    monkeypatch.setattr(packing, "PIECE_BYTES", 1000)
    content = tmp_path / "content"
    content.mkdir()
    (content / "noise").write_bytes(os.urandom(4000))
    (content / "__pycache__").mkdir()
    (content / "__pycache__" / "noise.pyc").touch()
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "piece-99").touch()  # of an earlier package
    with packing.Pieces(folder) as pieces, packing.archived(pieces) as archive:
        archive.add(content, "site", filter=packing.without_cache)
    manifest = {"architecture": 90, "python": HERE, "pieces": pieces.written}
    (folder / unpack.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_pieces_have_the_wanted_size_and_unpack_to_what_was_packed(package: Path, tmp_path: Path):
    pieces = json.loads((package / unpack.MANIFEST).read_text())["pieces"]
    assert [piece["bytes"] for piece in pieces[:4]] == [1000] * 4
    assert sorted(file.name for file in package.glob("piece-*")) == [piece["file"] for piece in pieces]
    assert all(
        piece["sha256"] == hashlib.sha256((package / piece["file"]).read_bytes()).hexdigest() for piece in pieces
    )
    into = unpack.unpack(package, tmp_path / "into")
    assert (into / "site/noise").read_bytes() == (tmp_path / "content/noise").read_bytes()
    assert not (into / "site/__pycache__").exists()


def test_what_is_unpacked_is_not_unpacked_again(package: Path, tmp_path: Path):
    into = unpack.unpack(package, tmp_path / "into")
    (package / "piece-00").unlink()
    assert unpack.unpack(package, into) == into


def test_a_missing_or_damaged_piece_and_another_python_are_named(package: Path, tmp_path: Path):
    second = (package / "piece-01").read_bytes()
    (package / "piece-01").write_bytes(second[:-1])
    with pytest.raises(ValueError, match="piece-01 is damaged; copy it again"):
        unpack.unpack(package, tmp_path / "into")
    (package / "piece-01").unlink()
    with pytest.raises(ValueError, match="piece-01 is missing; copy all pieces"):
        unpack.unpack(package, tmp_path / "into")
    manifest = json.loads((package / unpack.MANIFEST).read_text())
    (package / unpack.MANIFEST).write_text(json.dumps(manifest | {"python": "2.7"}))
    with pytest.raises(ValueError, match=f"this is Python {HERE}; the package is for Python 2.7"):
        unpack.unpack(package, tmp_path / "into")


def test_the_script_needs_only_the_standard_library_and_says_what_is_missing(tmp_path: Path):
    script = tmp_path / "unpack.py"
    script.write_text(Path(unpack.__file__).read_text())
    done = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("unpack.py: ")
    assert unpack.MANIFEST in done.stderr


def test_the_libraries_beside_torch_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "nvidia/cudnn/lib").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    found = unpack.environment(Path("/into"))
    assert found["LD_LIBRARY_PATH"].split(os.pathsep) == [str(tmp_path / "nvidia/cudnn/lib"), "/before"]
    assert found["PYTHONPATH"].split(os.pathsep)[:3] == ["/into/site", "/into/project", "/into/project/scripts"]


def test_the_provider_keeps_the_code_of_one_architecture(tmp_path: Path):
    code = struct.pack("<HHIQ12xI", 2, 1, 32, 8, 80) + b"\1" * 8
    library = tmp_path / "libprovider.so"
    library.write_bytes(MAGIC + struct.pack("<HHQ", 1, 16, len(code)) + code)
    assert packing.thin_provider(library, 80) == 0
    assert library.read_bytes().endswith(b"\1" * 8)
    with pytest.raises(Failed, match=r"libprovider.so: the library has no code for sm_90; it has code for sm_80"):
        packing.thin_provider(library, 90)


def test_the_package_holds_every_dependency_except_what_the_machine_has():
    found = {requirement.partition("==")[0] for requirement in packing.closure((packing.PROJECT,))}
    assert {"fastapi", "onnxruntime-gpu", "pydantic-core", "starlette", "typing-extensions"} <= found
    assert not found & (packing.PRESENT | {packing.PROJECT, "pytest", "matplotlib"})


def test_a_compressed_archive_is_one_stream(package: Path):
    joined = b"".join(file.read_bytes() for file in sorted(package.glob("piece-*")))
    assert len(lzma.decompress(joined)) > 4000
