"""Joins the pieces of a package, unpacks it, and runs the checks of a GPU: `python3 unpack.py`.

    python3 unpack.py                                   all pieces lie beside this file
    python3 unpack.py --pieces /tmp/pieces --into /tmp/checks
    python3 unpack.py -- --only C1 C8 --out measured    words after -- go to `faster-rcnn benchmark gpu`

`faster-rcnn benchmark gpu --pack` writes the package, this file included. It needs nothing but Python's own library.
The checks need torch and torchvision for CUDA 13, onnx and numpy.
"""

import argparse
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

MANIFEST = "manifest.json"
UNPACKED = "unpacked"  # a file that holds the hash of the manifest, once all is in place


def main() -> int:
    """The exit code of the checks, or 2 if the package cannot be unpacked."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Unpacks a package of GPU checks, and runs them.")
    parser.add_argument("--pieces", type=Path, default=here, metavar="DIR", help="folder of the pieces")
    parser.add_argument("--into", type=Path, default=here / "checks", metavar="DIR", help="folder to unpack into")
    arguments = parser.parse_args(words[:split])
    try:
        into = unpack(arguments.pieces.resolve(), arguments.into.resolve())
    except (OSError, ValueError, lzma.LZMAError, tarfile.TarError) as error:
        print(f"unpack.py: {error}", file=sys.stderr)
        return 2
    command = [sys.executable, str(into / "project/scripts/benchmark.py"), "gpu", "--models", str(into / "models")]
    return subprocess.run([*command, *words[split + 1 :]], env=environment(into)).returncode


def unpack(pieces: Path, into: Path) -> Path:
    """Unpacks into `into`, unless that is done already. Returns `into`.

    Raises ValueError for another Python, and for a piece that is missing or damaged.
    """
    text = (pieces / MANIFEST).read_bytes()
    manifest = json.loads(text)
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if running != manifest["python"]:
        raise ValueError(f"this is Python {running}; the package is for Python {manifest['python']}")
    digest = hashlib.sha256(text).hexdigest()
    done = into / UNPACKED
    if done.exists() and done.read_text() == digest:
        return into
    files = [_checked(pieces, piece) for piece in manifest["pieces"]]
    into.mkdir(parents=True, exist_ok=True)
    with lzma.open(io.BufferedReader(_Joined(files))) as xz, tarfile.open(fileobj=xz, mode="r|") as archive:
        archive.extractall(into, filter="data")
    done.write_text(digest)
    return into


def environment(into: Path) -> dict[str, str]:
    """This process's variables, and those with which Python finds the package, and ONNX Runtime the CUDA libraries.

    ONNX Runtime looks for the libraries beside itself, but they are beside torch.
    """
    paths = [str(into / "site"), str(into / "project"), str(into / "project/scripts")]
    libraries = [str(folder) for path in sys.path if path for folder in sorted(Path(path).glob("nvidia/*/lib"))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
    }


def _checked(folder: Path, piece: dict[str, str]) -> Path:
    file = folder / piece["file"]
    if not file.exists():
        raise ValueError(f"{file} is missing; copy all pieces into {folder}")
    if hashlib.sha256(file.read_bytes()).hexdigest() != piece["sha256"]:
        raise ValueError(f"{file} is damaged; copy it again")
    return file


class _Joined(io.RawIOBase):
    """Some files, read one after the other as if they were one."""

    def __init__(self, files: list[Path]) -> None:
        self._waiting = list(files)
        self._open = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not (size := self._open.readinto(buffer)) and self._waiting:
            self._open = io.BytesIO(self._waiting.pop(0).read_bytes())
        return size


if __name__ == "__main__":
    sys.exit(main())
