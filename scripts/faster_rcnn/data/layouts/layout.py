"""What the search for a layout returns: the splits of a data set, and how each of them is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from faster_rcnn.data.annotations import ParsedSplit
from faster_rcnn.data.layouts.tree import Tree

Reader = Callable[[], ParsedSplit]


@dataclass(frozen=True)
class Layout:
    """A layout that fits.

    name: the layout in words;  folder: the folder that it begins in;  splits: the reader of each split by its name in
    the data. A data set without splits has one, with the name `split_names.ALL`.
    """

    name: str
    folder: Path
    splits: Mapping[str, Reader]


@dataclass(frozen=True)
class Family:
    """Layouts that share a file format.

    prefix: its name in `--data PREFIX:…`;  looked_for: the files by which it is recognised;  find: returns the layout
    of a folder, or None if it does not fit;  near: returns what is missing if it nearly fits, or "".

    `find` raises ValueError if it fits but cannot be used, for example because two data sets lie in the folder.
    """

    prefix: str
    looked_for: str
    find: Callable[[Tree], Layout | None]
    near: Callable[[Tree], str] = lambda tree: ""  # noqa: ARG005


class UnknownLayoutError(FileNotFoundError):
    """No layout fits. The message says what was looked for, what was found, and what comes nearest."""
