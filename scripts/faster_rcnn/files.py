"""Files that are written whole or not at all, and one line in plain words for what prevents it.

A file is written beside its final place, flushed to the disk and then renamed. So a full disk, a crash or a power cut
leaves the previous file as it was, and no partial one.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAULTS = {
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EROFS: "its file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "is a folder",
    errno.EEXIST: "exists already",
    errno.ENOTEMPTY: "exists already",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network file system has lost it",
    errno.EPIPE: "the program that reads the output has ended",
    errno.ENOMEM: "the memory is used up",
    errno.EINVAL: "the system does not accept this path",
}
_REMEDIES = {
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or write to another file system",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another place",
    errno.ENOTEMPTY: "name another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files",
    errno.EPIPE: "write the output to a file, or read all of it",
    errno.ENOMEM: "give the process more memory, or lower --workers or --batch-size",
}


def write_file(path: Path, write: Callable[[IO[bytes]], object], needed: int | None = None) -> None:
    """Writes a file whole or not at all. `write` receives the open file; it must not read other files.

    A link stays a link: the file that it leads to is replaced. A device or a pipe is written to as it is.

    needed: the size of the file in bytes, if it is known beforehand, for the message.
    Raises OSError with a message that names the file, the cause and the remedy.
    """
    target = path.resolve() if path.is_symlink() else path
    try:
        if target.exists() and not (target.is_file() or target.is_dir()):
            with target.open("wb") as device:
                write(device)
        else:
            _replace(target, write)
    except Exception as error:
        if (cause := _system_error(error)) is None:
            raise
        raise OSError(in_words(cause, path, needed)) from error


def _replace(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind another one: torch.save reports a full disk as a fault of its archive."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__context__
    return None


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` as `write_file` does."""
    write_file(path, lambda file: file.write(content), len(content))


def write_text(path: Path, text: str) -> None:
    """Writes `text` in UTF-8 as `write_file` does."""
    write_bytes(path, text.encode())


def write_figure(path: Path, figure: "Figure", dpi: int) -> None:
    """Writes a plot as a PNG, as `write_file` does."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=dpi)
    write_bytes(path, encoded.getvalue())


def write_image(path: Path, image: Image.Image, quality: int) -> None:
    """Writes a JPEG as `write_file` does."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    write_bytes(path, encoded.getvalue())


def in_words(error: OSError, place: Path | None = None, needed: int | None = None) -> str:
    """An operating-system error in one line: the file, what happened, and what to do.

    place: the file, for an error that names none, as a full disk does, or that names a temporary file;
    needed: the bytes that were to be written.
    """
    named = error.filename if isinstance(error.filename, str | Path) else None
    if place is None or (named is not None and not str(named).endswith(".part")):
        place = Path(named) if named is not None else None
    where = "" if place is None else f"{place}: "
    code = error.errno or 0
    if code == errno.ENOSPC:
        return f"{where}{_no_room(place, needed)}"
    fault = _FAULTS.get(code, (error.strerror or "the system refuses it").lower())
    return f"{where}{fault}; {_REMEDIES.get(code, 'check the path and the disk')}"


def free_bytes(folder: Path) -> int:
    """The bytes that this user can still write where `folder` is, or would be created."""
    return shutil.disk_usage(existing(folder)).free


def existing(place: Path) -> Path:
    """`place`, or the nearest folder above it that exists."""
    whole = place.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def size(number: int) -> str:
    """A number of bytes as a person reads it."""
    for limit, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number} bytes"


def _no_room(place: Path | None, needed: int | None) -> str:
    remedy = "free some space, or write to another disk"
    if place is None:
        return f"no room on the disk; {remedy}"
    folder = existing(place.parent)
    free = free_bytes(folder)
    if needed is not None and free > needed and hasattr(os, "statvfs") and os.statvfs(folder).f_favail == 0:
        return f"the disk has no room for another file, though {size(free)} are free; delete some, or use another disk"
    figures = f"{size(free)} free" if needed is None else f"{size(needed)} needed, {size(free)} free"
    return f"no room on the disk ({figures}); {remedy}"
