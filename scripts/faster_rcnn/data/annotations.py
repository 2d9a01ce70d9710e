"""What the readers of COCO's and VOC's formats return: the images of a split and their objects, not yet checked."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from faster_rcnn.data.faults import Fault

LONGEST_SIDE = 1_000_000  # pixels; larger values are treated as annotation errors


@dataclass(frozen=True, slots=True)  # without slots a million of them need half as much memory again
class Annotation:
    """One object as an annotation file describes it.

    where: file and line;  title: how messages name the object;  written_box: its box in the file's own notation;
    box: x1, y1, x2, y2 in pixels of the upright image;  area: area of the outline, None if the file does not give it.
    """

    where: str
    title: str
    written_box: str
    box: tuple[float, float, float, float]
    label: int
    crowd: bool = False
    difficult: bool = False
    area: float | None = None


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image as an annotation file describes it.

    height, width: size of the upright image;  where: file and line that state it;
    size_from_file: whether the image's file gave the size, because the annotations do not state it.
    """

    name: str
    path: Path
    height: int
    width: int
    where: str
    annotations: list[Annotation] = field(default_factory=list)
    size_from_file: bool = False


@dataclass(frozen=True)
class ParsedSplit:
    """Everything that a reader found in the annotations of a split, including the faults."""

    source: str
    split: str
    labels: tuple[str, ...]
    images: list[AnnotatedImage]
    faults: list[Fault]


def leads_outside(name: str) -> bool:
    """Whether a file name points outside the folder that it is relative to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name[:2]


def is_file(path: Path) -> bool:
    """Whether `path` is a file; False also if the operating system rejects the name."""
    try:
        return path.is_file()
    except OSError:  # for example a name that is too long
        return False
