"""The folder of published models, `<name>/<version>/` (contract 4; the layout that Triton users know)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from service.engine.model import Refused


class Listing(NamedTuple):
    """versions    every `<name>/<version>` in a store, in order
    unreadable  every `<name>` that cannot be listed: one that was published wrongly, or a volume's lost+found
    """

    versions: list[Path]
    unreadable: list[Path]


def directories(store: Path) -> Listing:
    """What the store holds. Hidden folders are versions still being written."""
    if not store.is_dir():
        raise Refused(f"the model store {store} is not a directory; set MODEL_STORE or publish a model")
    found = Listing([], [])
    for name in _folders(store):
        try:
            found.versions.extend(_folders(name))
        except OSError:
            found.unreadable.append(name)
    return found


def _folders(parent: Path) -> list[Path]:
    shown = (child for child in parent.iterdir() if not child.name.startswith("."))
    return sorted(filter(os.path.isdir, shown))  # False for a link to where one may not look; Path.is_dir raises


def default_name(store: Path) -> str | None:
    """The model that the store itself prefers: the name in its file `default`, if there is one."""
    file = store / "default"
    return file.read_text().strip() or None if file.is_file() else None
