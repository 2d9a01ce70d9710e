"""Packs the checks for a machine with a GPU but without a network: `faster-rcnn benchmark gpu --pack DIR`.

That machine needs Python 3.12, torch and torchvision for CUDA 13, onnx and numpy. The package brings all else: ONNX
Runtime with the machine code of one GPU architecture, the other dependencies of the project, the project itself, and
the exported models. It is one archive, cut into pieces that can be sent one by one, and a script that joins them,
unpacks them and starts the checks.
"""

import hashlib
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import unpack
from benchmarks.gpu.measure_gpu import prepare_models
from benchmarks.gpu.setup import ROOT
from benchmarks.gpu.thinning import thin
from benchmarks.workers import Failed

PYTHON = "3.12"
PIECE_BYTES = 40 * 2**20  # so that a piece and the project's own files fit into 64 MiB
PRESET = 3  # of xz; 6 takes four times as long for 4 % less
PROJECT = "faster-rcnn-service"
MORE = ("nvidia-ml-py", "safetensors", "tqdm")  # what the checks need beyond the project's own dependencies
PRESENT = frozenset({"numpy", "onnx", "torch", "torchvision"})  # on the machine
# pip takes a platform as it is written, so each one that a wheel may name is listed.
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 40)))
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
LEFT_OUT = ("onnxruntime/capi/libonnxruntime_providers_tensorrt.so",)
SOURCES = ("service", "scripts", "model_store", "pyproject.toml")


def pack(folder: Path, architecture: int, models: Path | None) -> None:
    """Writes the package into `folder`, and prints the size of each piece.

    architecture: of the GPU, such as 90;  models: folder with the exported models; None to export them now.
    Raises Failed if a wheel cannot be downloaded, or has no code for that architecture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        models = models or Path(place) / "models"
        for rehearsal in (True, False):
            prepare_models(models, rehearsal)
        site = Path(place) / "site"
        _install(site, closure((PROJECT, *MORE)))
        zeroed = thin_provider(site / PROVIDER, architecture)
        for name in LEFT_OUT:
            (site / name).unlink(missing_ok=True)
        print(f"{zeroed / 1e6:.0f} MB of code for other architectures removed; compressing …", file=sys.stderr)
        with Pieces(folder) as pieces, archived(pieces) as archive:
            archive.add(site, "site", filter=without_cache)
            archive.add(models, "models")
            for name in SOURCES:
                archive.add(ROOT / name, f"project/{name}", filter=without_cache)
    manifest = {"architecture": architecture, "python": PYTHON, "pieces": pieces.written}
    (folder / unpack.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.copy(unpack.__file__, folder / "unpack.py")
    for piece in pieces.written:
        print(f"{piece['file']}: {int(piece['bytes']) / 2**20:.1f} MiB")
    print(f"{folder}: copy it to the machine and run: python3 unpack.py")


def thin_provider(library: Path, architecture: int) -> int:
    """Removes the code of other architectures from the CUDA provider. Returns the bytes that are zero now."""
    content = bytearray(library.read_bytes())
    try:
        thinned = thin(content, architecture)
    except ValueError as error:
        raise Failed(f"{library.name}: {error}") from error
    library.write_bytes(content)
    return thinned.zeroed.total()


def closure(names: Iterable[str]) -> list[str]:
    """The installed versions of these distributions and of all that they need, without those in PRESENT."""
    found: dict[str, str] = {}
    waiting = [canonicalize_name(name) for name in names]
    for name in waiting:  # grows while it is walked
        if name in found or name in PRESENT:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # such as a package that only a machine with a GPU needs
            found[name] = name
            continue
        found[name] = f"{name}=={installed.version}"
        needs = [Requirement(line) for line in installed.requires or ()]
        waiting.extend(canonicalize_name(need.name) for need in needs if _is_needed(need))
    del found[PROJECT]
    return sorted(found.values())


def _is_needed(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": "", "python_version": PYTHON})


def _install(site: Path, requirements: list[str]) -> None:
    """Unpacks the wheels of these requirements for the machine's Python into `site`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--target", str(site)]
    command += [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"pip cannot fetch the wheels: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def without_cache(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


class Pieces(io.RawIOBase):
    """A file for writing that is kept in pieces of PIECE_BYTES in `folder`. Pieces of an earlier package are removed.

    written: name, bytes and SHA-256 of each piece, complete once it is closed.
    """

    def __init__(self, folder: Path) -> None:
        for old in folder.glob("piece-*"):
            old.unlink()
        self._folder = folder
        self._waiting = bytearray()
        self.written: list[dict[str, str | int]] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._waiting += data
        while len(self._waiting) >= PIECE_BYTES:
            self._write_piece(PIECE_BYTES)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._waiting:
            self._write_piece(len(self._waiting))
        super().close()

    def _write_piece(self, size: int) -> None:
        piece, self._waiting = bytes(self._waiting[:size]), self._waiting[size:]
        name = f"piece-{len(self.written):02}"
        (self._folder / name).write_bytes(piece)
        self.written.append({"file": name, "bytes": size, "sha256": hashlib.sha256(piece).hexdigest()})


@contextmanager
def archived(file: io.RawIOBase) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed by xz, that is written to `file` while the context lasts."""
    with lzma.open(cast(IO[bytes], file), "wb", preset=PRESET) as xz, tarfile.open(fileobj=xz, mode="w|") as archive:
        yield archive
