"""How messages name files from a zip file: `data.zip/dir/file` instead of their place in the cache."""

from pathlib import Path

_archives: dict[str, str] = {}  # the folder with the contents of a zip file → the zip file, as the user named it


def show_as(folder: Path, archive: Path) -> None:
    """From now on messages name the files in `folder`, which hold the contents of `archive`, by the archive."""
    _archives[str(folder)] = str(archive)


def shown(text: str) -> str:
    """`text` with the folders in the cache replaced by the zip files that they were unpacked from."""
    for folder, archive in _archives.items():
        text = text.replace(folder, archive)
    return text
