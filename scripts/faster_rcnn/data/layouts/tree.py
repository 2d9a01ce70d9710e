"""The files of a folder by their paths, read once, without the files that systems and tools leave behind."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

# Every common format, not only those that can be decoded: the check names the files that cannot.
IMAGE_SUFFIXES = frozenset(
    f".{word}"
    for word in re.findall(r"\w+", "jpg jpeg jpe jfif mpo png bmp dib webp gif tif tiff avif heic heif jxl jp2 ppm pgm")
)
MOST_FILES = 3_000_000  # in one folder with its subfolders; more means that a wrong folder was named
_LEFT_BEHIND = frozenset({"__MACOSX", "lost+found", "Thumbs.db", "desktop.ini", "ehthumbs.db"})


def is_left_behind(name: str) -> bool:
    """Whether a file or folder belongs to a system or a tool instead of the data: `._a.jpg`, `__MACOSX`, `.git`."""
    return name.startswith(".") or name in _LEFT_BEHIND


def is_image(path: str) -> bool:
    """Whether the extension, in any case, is that of an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - for a hundred thousand names


@dataclass(frozen=True)
class Tree:
    """The files below a folder.

    root: the folder;  by_folder: the names of the files in each folder, in alphabetical order, by the folder's path
    from the root; the root's own path is "".
    """

    root: Path
    by_folder: dict[str, list[str]] = field(repr=False)

    def files(self, suffixes: str | frozenset[str] = "") -> Iterator[str]:
        """The paths of all files from the root; with `suffixes`, only those with (one of) these, in lower case."""
        wanted = frozenset(suffixes.split()) if isinstance(suffixes, str) else suffixes
        for folder, names in self.by_folder.items():
            for name in names:
                if not wanted or os.path.splitext(name)[1].lower() in wanted:  # noqa: PTH122
                    yield f"{folder}/{name}" if folder else name

    @cached_property
    def images(self) -> list[str]:
        """The paths of all images from the root."""
        return list(self.files(IMAGE_SUFFIXES))

    def folders(self, name: str) -> list[str]:
        """The paths of the folders with this name, in any case; the outermost first."""
        found = [one for one in self.by_folder if PurePosixPath(one).name.lower() == name.lower()]
        return sorted(found, key=lambda one: (one.count("/"), one))

    def only_folder(self) -> Path | None:
        """The one folder that holds everything except loose texts, as in many zip files; None if there is no such."""
        tops = {one.partition("/")[0] for one in self.by_folder if one}
        return self.root / tops.pop() if len(tops) == 1 else None

    def listing(self) -> str:
        """What the folder holds, in a few words: `data.txt, train/ (40 .jpg, 40 .txt)`."""
        tops: dict[str, Counter[str]] = {}
        for path in self.files():
            top, _, rest = path.partition("/")
            if rest:
                tops.setdefault(f"{top}/", Counter())[PurePosixPath(rest).suffix.lower() or "without extension"] += 1
        loose = self.by_folder.get("", [])
        words = loose if len(loose) <= 4 else [_counts(Counter(PurePosixPath(name).suffix.lower() for name in loose))]
        words = [*words, *(f"{top} ({_counts(counts)})" for top, counts in sorted(tops.items())[:5])]
        more = f", and {len(tops) - 5} more folders" if len(tops) > 5 else ""
        return ", ".join(words) + more or "no files"


def _counts(suffixes: "Counter[str]") -> str:
    shown = [f"{count} {suffix or 'without extension'}" for suffix, count in suffixes.most_common(3)]
    return ", ".join(shown) + (", …" if len(suffixes) > 3 else "")


def read_tree(root: Path) -> Tree:
    """Lists a folder and its subfolders, also those behind links.

    Raises ValueError if it has far more files than a data set, OSError if it cannot be read.
    """
    by_folder: dict[str, list[str]] = {}
    visited: set[tuple[int, int]] = set()  # device and inode: a link may lead back to a folder that contains it
    total = 0

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(place)  # noqa: PTH116 - `place` is a string here
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_left_behind(name))
        relative = os.path.relpath(place, root).replace(os.sep, "/")
        by_folder["" if relative == "." else relative] = sorted(name for name in names if not is_left_behind(name))
        total += len(names)
        if total > MOST_FILES:
            raise ValueError(f"{root} holds more than {MOST_FILES:,} files; name the data set's own folder")
    return Tree(root, by_folder)
