"""The model store: a folder with `<name>/<version>/` for each published version, as in Triton (contract 4)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class StoreMissingError(Exception):
    """The model store is not a directory; the message contains the remedy."""


class Listing(NamedTuple):
    """The contents of a store.

    versions    every `<name>/<version>`, in order
    unreadable  every `<name>` that cannot be listed, such as a volume's lost+found
    """

    versions: list[Path]
    unreadable: list[Path]


def directories(store: Path) -> Listing:
    """Lists the store. Hidden folders are skipped, because they hold versions that are still being written.

    Raises StoreMissingError.
    """
    if not store.is_dir():
        raise StoreMissingError(f"the model store {store} is not a directory; set MODEL_STORE or publish a model")
    found = Listing([], [])
    for name in _folders(store):
        try:
            found.versions.extend(_folders(name))
        except OSError:
            found.unreadable.append(name)
    return found


def _folders(parent: Path) -> list[Path]:
    shown = (child for child in parent.iterdir() if not child.name.startswith("."))
    # For a link into a folder without permission, os.path.isdir returns False where Path.is_dir raises.
    return sorted(filter(os.path.isdir, shown))


def default_name(store: Path) -> str | None:
    """The name in the store's file `default`, or None if there is no such file or it is empty."""
    file = store / "default"
    return file.read_text().strip() or None if file.is_file() else None
