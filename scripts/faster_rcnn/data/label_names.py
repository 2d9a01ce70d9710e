"""Class names of a detector from a text file with one name per line, without the background.

A class's index in the graph is its index in torchvision minus 1, because torchvision counts the background as class 0.
"""

from collections.abc import Sequence
from pathlib import Path

NOT_AVAILABLE = "N/A"  # torchvision's name for the category numbers that COCO does not use
BACKGROUND = ("background", "__background__")  # the usual spelling, and torchvision's


def read_labels(file: Path, classes: int) -> tuple[str, ...]:
    """Reads the names of a detector's classes from a file.  classes: their number.

    Raises ValueError if a line is empty or names the background, if a name occurs twice, or if there are not exactly
    `classes` names; FileNotFoundError if the file does not exist.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give a text file with one label per line, without the background")
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; create it with one label per line, without the background")
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file in UTF-8; write one label per line") from error
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise ValueError(f"{file}: line {names.index('') + 1} is empty; write one label per line, without gaps")
    if names and names[0].lower() in BACKGROUND:
        raise ValueError(f"{file}: line 1 is {names[0]}, which is the background; remove that line")
    if len(names) != classes:
        raise ValueError(f"{file} has {len(names)} labels, but the detector has {classes} classes (without background)")
    return distinct(names, str(file))


def distinct(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Appends torchvision's number to each `N/A`, because the service needs unique class names.

    Raises ValueError if any other name occurs twice.
    """
    unique = [f"{name} {place}" if name == NOT_AVAILABLE else name for place, name in enumerate(names, start=1)]
    for name in unique:
        lines = [str(place) for place, other in enumerate(unique, start=1) if other == name]
        if len(lines) > 1:
            raise ValueError(f"{source}: {name} appears on lines {', '.join(lines)}; class names must be unique")
    return tuple(unique)
