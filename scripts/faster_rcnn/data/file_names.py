"""Which files there are, from one listing of each folder: asking for each of 100,000 files takes much longer."""

import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

from faster_rcnn.data.annotations import is_file


class _Listing(NamedTuple):
    """The files of a folder.  spellings: their names in one case and one Unicode form."""

    names: frozenset[str]
    spellings: frozenset[str]


class FileNames:
    """Answers whether a file exists. Every folder is listed once, when a file in it is first asked for."""

    def __init__(self) -> None:
        self._listings: dict[str, _Listing] = {}

    def __contains__(self, path: Path) -> bool:
        """Whether `path` is a file, or a link to one; False also if the operating system rejects the name."""
        folder, name = os.path.split(path)
        listing = self._listings.get(folder)
        if listing is None:
            listing = self._listings[folder] = _listing(folder)
        if name in listing.names:
            return True
        # Some file systems find a file by its name in another case. Only they know which names are equal.
        return _spelling(name) in listing.spellings and is_file(path)


def _listing(folder: str) -> _Listing:
    try:
        with os.scandir(folder or ".") as entries:
            names = frozenset(entry.name for entry in entries if _is_file(entry))
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        names = frozenset()
    return _Listing(names, frozenset(map(_spelling, names)))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # for example a circle of links
        return False


def _spelling(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
