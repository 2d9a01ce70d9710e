"""Names of a detector's classes from a file, one a line, without background: index in the graph = torchvision's - 1."""

from collections.abc import Sequence
from pathlib import Path

NOT_AVAILABLE = "N/A"  # what torchvision calls the numbers that COCO skips
BACKGROUND = ("background", "__background__")  # as people and torchvision write it


def read_labels(file: Path, classes: int) -> tuple[str, ...]:
    """The names in a file, which must be `classes` in number and differ.

    Raises ValueError that names the lines at fault, FileNotFoundError if there is no such file.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file in it that holds one label a line, without background")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; write one label a line into it, without background")
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8; write one label a line") from error
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise ValueError(f"{file}: line {names.index('') + 1} is empty; write one label a line, without gaps")
    if names and names[0].lower() in BACKGROUND:
        raise ValueError(f"{file}: line 1 is {names[0]}, which is no object; take it out")
    if len(names) != classes:
        raise ValueError(f"{file} has {len(names)} labels, the detector {classes} classes without background")
    return distinct(names, str(file))


def distinct(names: Sequence[str], source: str) -> tuple[str, ...]:
    """The names, each `N/A` with torchvision's number behind it: a service tells classes apart by name.

    Raises ValueError if another name occurs twice.
    """
    told_apart = [f"{name} {place}" if name == NOT_AVAILABLE else name for place, name in enumerate(names, start=1)]
    for name in told_apart:
        lines = [str(place) for place, other in enumerate(told_apart, start=1) if other == name]
        if len(lines) > 1:
            raise ValueError(f"{source}: {name} stands on lines {', '.join(lines)}; give each class a name of its own")
    return tuple(told_apart)
