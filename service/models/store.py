"""The model store: a folder with `<name>/<version>/` for each published version, as in Triton (contract 4).

The file `default` in the store names the model for requests that name none, as `name` or `name/version`. The file
`<name>/default` holds the number of the version for requests that name the model without a version.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from service.engine.card import LONGEST_NAME, NAME, OTHER_FILE, shortened

LARGEST_FILE = 1024  # bytes of a file `default`; a longer one cannot hold one name
MOST_WATCHED = 100  # graphs in one folder

Signature = tuple[tuple[str, *tuple[int, ...]], ...]


class StoreMissingError(Exception):
    """The model store is not there, or holds nothing; the message contains the remedy."""


class UnusableFileError(Exception):
    """A file `default` that cannot be read or does not hold what it should; the message says what is wrong with it."""


class ModelPlace(NamedTuple):
    """A model, in one version or in the one that answers by default."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}/{self.version}"


class Listing(NamedTuple):
    """The contents of a store.

    names       every folder that a model's name may have, whether or not it can be listed
    versions    every `<name>/<version>`, in order
    unreadable  every `<name>` that cannot be listed, such as a volume's lost+found
    """

    names: list[str]
    versions: list[Path]
    unreadable: list[Path]


def directories(store: Path) -> Listing:
    """Lists the store. Hidden folders are skipped, because they hold versions that are still being written.

    Raises StoreMissingError, and OSError if the store cannot be listed now.
    """
    try:
        names, doubtful = _folders(store)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreMissingError("the model store is not a directory; set MODEL_STORE or publish a model") from error
    found = Listing([], [], doubtful)
    for name in names:
        try:
            versions, unknown = _folders(name)
            found.versions.extend(sorted([*versions, *unknown]))  # loading says why a version cannot be looked at
        except (FileNotFoundError, NotADirectoryError):  # removed since
            continue
        except OSError:
            found.unreadable.append(name)
    found.names.extend(sorted(each.name for each in [*names, *doubtful] if is_name(each.name)))
    return found


def _folders(parent: Path) -> tuple[list[Path], list[Path]]:
    """The folders in `parent`, and the entries of which it cannot be told now whether they are folders."""
    folders, doubtful = [], []
    for child in sorted(parent.iterdir()):
        if child.name.startswith("."):
            continue
        try:
            if stat.S_ISDIR(child.stat().st_mode):
                folders.append(child)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # broken links lead nowhere
                doubtful.append(child)
    return folders, doubtful


def is_name(word: str) -> bool:
    """Whether a model may have this name."""
    return len(word) <= LONGEST_NAME and re.fullmatch(NAME, word) is not None


def signature(directory: Path) -> Signature:
    """A value that changes when the folder or a file of a version changes, or its permissions.

    It holds, for each of them, the name, the times of the last change of its contents and of its entry, the size, and
    the inode; or the name and the number of the error if it cannot be looked at. Missing files are left out.
    """
    files: list[tuple[str, *tuple[int, ...]]] = []
    for name in ("", "model.json", "model.onnx", *_other_graphs(directory)):
        try:
            found = (directory / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            files.append((name, error.errno or 0))
            continue
        size = found.st_size if name else 0
        files.append((name, found.st_mtime_ns, found.st_ctime_ns, size, found.st_ino))
    return tuple(files)


def _other_graphs(directory: Path) -> list[str]:
    """The files in a version's folder that its card may list as other graphs; the card itself is not read."""
    try:
        names = sorted(entry.name for entry in directory.iterdir() if re.fullmatch(OTHER_FILE, entry.name))
    except OSError:  # whoever may not list the folder may still read its files
        return []
    return names[:MOST_WATCHED]


# --- the files `default` ---------------------------------------------------------------------------------------------


def parse_place(text: str) -> ModelPlace:
    """`name` or `name/version`. Raises ValueError."""
    name, slash, version = text.partition("/")
    if not is_name(name) or (slash and not (version.isdecimal() and version.isascii() and len(version) <= 16)):
        raise ValueError("it must be the name of a model, or name/version")
    return ModelPlace(name, int(version) if slash else None)


def find_place(store: Path, text: str) -> ModelPlace:
    """The place that `text` names, as `name` or `name/version`. A store that cannot be listed now may have it.

    Raises ValueError, which says what the store has, if it is not in the store.
    """
    place = parse_place(text)
    try:
        listing = directories(store)
    except (OSError, StoreMissingError):
        return place
    unlisted = place.name in [each.name for each in listing.unreadable]
    versions = [f"{each.parent.name}/{each.name}" for each in listing.versions]
    check_listed(ModelPlace(place.name) if unlisted else place, listing.names, versions)
    return place


def check_listed(place: ModelPlace, names: Collection[str], versions: Collection[str]) -> None:
    """Raises ValueError, which says what the store has, unless it has the model `place` and its version.

    names, versions  of the store, the versions as "name/version"
    """
    if place.name not in names:
        found = shortened(", ".join(sorted(names))) or "none"
        raise ValueError(f"the model store has no such model; it has {found}")
    if place.version is not None and str(place) not in versions:
        its = [each.partition("/")[2] for each in versions if each.startswith(f"{place.name}/")]
        found = shortened(", ".join(its)) or "none"
        raise ValueError(f"the model store has no such version of {place.name}; it has {found}")


def misplaced(store: Path) -> str | None:
    """Why a store without any version is probably a folder too high or too low, with the right one; else None."""
    levels = (
        ("*/*/model.json", None),
        ("model.json", "the folder of one version"),
        ("*/model.json", "the folder of one model"),
        ("*/*/*/model.json", "a folder above the model store"),
    )
    try:
        for pattern, what in levels:
            found = next((card for card in store.absolute().glob(pattern) if card.parent.name.isdecimal()), None)
            if found:
                return what and f"this is {what}; set it to {str(found.parents[2])!r}"
    except OSError:  # it may be readable later; loading says why
        pass
    return None


def read_default(store: Path) -> ModelPlace | None:
    """What the store's file `default` names, or None if there is no such file. Raises UnusableFileError."""
    text = _read_line(store / "default")
    try:
        return None if text is None else parse_place(text)
    except ValueError as error:
        raise UnusableFileError(f"{error}, on one line") from None


def read_pin(folder: Path) -> int | None:
    """The version in the file `default` of a model's folder, or None if there is none. Raises UnusableFileError."""
    text = _read_line(folder / "default")
    if text is None:
        return None
    if not (text.isdecimal() and text.isascii() and len(text) <= 16):
        raise UnusableFileError("it must be the number of a version, on one line")
    return int(text)


def write_file(file: Path, text: str) -> None:
    """Replaces a file in one step, so that no reader sees a part of it. Raises OSError."""
    write_bytes(file, f"{text}\n".encode())


def write_bytes(file: Path, data: bytes) -> None:
    """The same for bytes."""
    descriptor, aside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        Path(aside).chmod(0o644)  # mkstemp allows its owner alone, and the service may be another user
        Path(aside).replace(file)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _read_line(file: Path) -> str | None:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError("it is not a file")
        with file.open("rb") as opened:
            data = opened.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        if file.is_symlink():
            raise UnusableFileError("it is a link to a file that does not exist") from None
        return None
    except OSError as error:
        raise UnusableFileError(f"it cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    if not data.strip():
        raise UnusableFileError("it is empty")
    try:
        text = data.decode() if len(data) <= LARGEST_FILE else "\n\n"
    except UnicodeDecodeError:
        raise UnusableFileError("it is not text in UTF-8") from None
    return text.strip()
