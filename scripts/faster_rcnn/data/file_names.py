"""Which files there are, from one listing of each folder: asking for each of 100,000 files takes much longer.

Names that differ only in letter case, in Unicode's composed and decomposed forms, or in percent-coding look alike: they
are one name on some file systems, and two on others.
"""

import os
import unicodedata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from faster_rcnn.data.annotations import is_file
from faster_rcnn.data.repairs import Repair

LOOKS_ALIKE = Repair(
    "image under another name",
    "images",
    "have a file whose name differs in letter case, Unicode form or percent-coding; it is used",
    "rename the files, or correct the names, so that every system finds them",
)


class _Listing(NamedTuple):
    """What is in a folder.  names: of files;  spellings: the names of files and folders by `spelling`."""

    names: frozenset[str]
    spellings: dict[str, list[str]]


class FileNames:
    """Answers whether a file exists. Every folder is listed once, when a file in it is first asked for."""

    def __init__(self) -> None:
        self._listings: dict[str, _Listing] = {}

    def __contains__(self, path: Path) -> bool:
        """Whether `path` is a file, or a link to one; False also if the operating system rejects the name."""
        folder, name = os.path.split(path)
        listing = self._listing(folder)
        if name in listing.names:
            return True
        # Some file systems find a file by its name in another case. Only they know which names are equal.
        return spelling(name) in listing.spellings and is_file(path)

    def look_alikes(self, path: Path, folder: Path) -> list[Path]:
        """The files whose paths look like `path`, which lies in `folder`. The names below `folder` may differ."""
        found = [folder]
        parts = path.relative_to(folder).parts
        for part in parts:
            found = [one / name for one in found for name in self._listing(str(one)).spellings.get(spelling(part), ())]
        return [one for one in found if one in self]

    def of_the_same_stem(self, path: Path) -> list[Path]:
        """The files of the same folder whose names differ from `path` only in the extension, in any spelling."""
        stem = spelling(path.stem)
        names = self._listing(str(path.parent)).names
        return sorted(path.parent / name for name in names if spelling(Path(name).stem) == stem)

    def _listing(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _listing(folder)
        return self._listings[folder]


def spelling(name: str) -> str:
    """What names that look alike have in common."""
    return same_name(unquote(name))


def same_name(path: str) -> str:
    """What equal names have in common: letter case and Unicode's composed and decomposed forms are removed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _listing(folder: str) -> _Listing:
    names: set[str] = set()
    spellings: dict[str, list[str]] = {}
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                spellings.setdefault(spelling(entry.name), []).append(entry.name)
                if _is_file(entry):
                    names.add(entry.name)
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        pass
    return _Listing(frozenset(names), spellings)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # for example a circle of links
        return False
