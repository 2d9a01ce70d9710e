"""Unpacks a zip file once, into the user's cache folder. The file may be hostile.

Its contents are bounded by its own size and by the room on the disk, and nothing is written outside the cache.
"""

import contextlib
import hashlib
import lzma
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from faster_rcnn.data.annotations import leads_outside
from faster_rcnn.data.layouts.tree import MOST_FILES, is_left_behind
from faster_rcnn.user_cache import user_cache

MOST_EXPANSION = 200  # times the size of the zip file; text and drawings reach 20 to 50
ALWAYS_ALLOWED = 100_000_000  # bytes, for a small file whose annotations are very repetitive
KEPT_FREE = 100_000_000  # bytes on the disk
_BLOCK = 1 << 20
_DONE = "unpacked"  # beside the files: the folder is complete


def cache_folder() -> Path | None:
    """Where zip files are unpacked; None for a user without a home folder."""
    cache = user_cache()
    return None if cache is None else cache / "data"


def unpacked(file: Path) -> Path:
    """The folder with the contents of a zip file, unpacked now or by an earlier call.

    Raises ValueError if the file is not a zip file, is damaged or encrypted, would become too large, or has a path that
    leads outside; OSError if the cache cannot be written or has too little room.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(file, archive)
            if (cache := cache_folder()) is None:
                raise OSError(f"{file} cannot be unpacked, because this user has no home folder; set XDG_CACHE_HOME")
            folder = cache / _identity(archive)
            if not (folder / _DONE).is_file():
                _unpack(file, archive, members, folder)
            return folder / "files"
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(
            f"{file}: not a complete zip file, or damaged; copy or download it again, or unpack it and name the folder"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile raises them for unknown methods
        raise ValueError(
            f"{file}: compressed by a method that is not supported; unpack it and name the folder"
        ) from error


def _members(file: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files to unpack by their paths.  Raises ValueError if any of the contents is not acceptable."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        path = _path(info)
        if leads_outside(path) or "\0" in path:
            raise ValueError(f"{file}: its entry {path!r} leads outside the folder; do not use this file")
        parts = PurePosixPath(path).parts
        if info.is_dir() or path.endswith("/") or not parts or any(map(is_left_behind, parts)):
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"{file}: its entry {path!r} is a link or a device; pack the file itself instead")
        if info.flag_bits & 1:
            raise ValueError(f"{file}: encrypted; unpack it with its password and name the folder")
        members["/".join(parts)] = info
        total += info.file_size
    if not members:
        raise ValueError(f"{file}: it holds no files; export or pack the data again")
    size = file.stat().st_size
    if total > max(ALWAYS_ALLOWED, MOST_EXPANSION * size) or len(members) > MOST_FILES:
        raise ValueError(
            f"{file}: {size / 1e6:.1f} MB that would become {len(members):,} files and {total / 1e6:,.0f} MB; "
            f"more than {MOST_EXPANSION} times is refused. If you trust it, unpack it and name the folder"
        )
    return members


def _path(info: zipfile.ZipInfo) -> str:
    """The path of an entry. Some programs write UTF-8 without saying so, others backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:  # then zipfile decodes by code page 437
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _identity(archive: zipfile.ZipFile) -> str:
    """A name for the contents: the same for a copy, another one as soon as a file in it changes."""
    digest = hashlib.sha256()
    for info in archive.infolist():
        digest.update(f"{info.filename!r} {info.CRC} {info.file_size} {info.header_offset}\n".encode())
    return digest.hexdigest()[:32]


def _unpack(file: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    total = sum(info.file_size for info in members.values())
    aside = _new_folder(folder.parent, file, total)
    try:
        with tqdm(total=total, desc=f"unpacking {file.name}", unit="B", unit_scale=True, leave=False) as progress:
            for path, info in members.items():
                target = aside / "files" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, target.open("wb") as out:
                    while block := packed.read(_BLOCK):
                        out.write(block)
                        progress.update(len(block))
        (aside / _DONE).write_text(f"{file.absolute()}\n")
        if not (folder / _DONE).is_file():  # what an earlier version or a cleaner left
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(FileExistsError):
            aside.rename(folder)
    except OSError as error:
        if (folder / _DONE).is_file():
            return  # another process was faster; its files are the same
        if error.strerror is None:  # bz2's error for damaged data
            raise EOFError(file) from error
        raise OSError(
            f"{file} cannot be unpacked into {folder.parent} ({error.strerror}); set XDG_CACHE_HOME to a folder with "
            f"{total / 1e6:,.0f} MB of room, or unpack it yourself and name the folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _new_folder(parent: Path, file: Path, total: int) -> Path:
    """A new folder in the cache, on a disk with room for `total` bytes."""
    remedy = "set XDG_CACHE_HOME to another folder, or unpack the file yourself and name its folder"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free >= total + KEPT_FREE:
            return Path(tempfile.mkdtemp(prefix="part-", dir=parent))
    except OSError as error:
        raise OSError(f"{parent}: {file} cannot be unpacked here ({error.strerror}); {remedy}") from error
    raise OSError(
        f"{parent}: {file} needs {total / 1e6:,.0f} MB here, and only {free / 1e6:,.0f} MB are free; free some space, "
        f"{remedy}"
    )
