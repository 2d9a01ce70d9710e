"""Faults of annotated images: where each one is, what was found, and how to fix it."""

from collections.abc import Sequence
from dataclasses import dataclass

from faster_rcnn.data.shown_paths import shown

SHOWN = 3  # faults listed in an error message, which must remain one readable line


@dataclass(frozen=True)
class Fault:
    """One fault.  kind: a few words, the same for similar faults;  where: the file, with its line if it has lines.

    An error prevents training from starting; a warning is only reported. A skippable fault concerns a box or an image
    that can be left out; any other concerns the whole data set, such as two classes with the same name.
    """

    kind: str
    where: str
    what: str
    remedy: str
    warning: bool = False
    skippable: bool = True

    def __str__(self) -> str:
        return printable(f"{self.where}: {'warning: ' if self.warning else ''}{self.what}; {self.remedy}")


def printable(text: str) -> str:
    """`text` on one line: line breaks and characters that cannot be printed become escapes.

    Files that were unpacked from a zip file are named by it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown(text))


def stopping(faults: Sequence[Fault], skip_bad_boxes: bool) -> list[Fault]:
    """The errors among the faults; with `skip_bad_boxes` only those that cannot be skipped."""
    return [fault for fault in faults if not fault.warning and not (skip_bad_boxes and fault.skippable)]


def refuse(faults: Sequence[Fault], source: str, skip_bad_boxes: bool) -> None:
    """Raises ValueError if training cannot start with these faults; the message is one line with the first few."""
    serious = stopping(faults, skip_bad_boxes)
    if not serious:
        return
    more = f" · and {len(serious) - SHOWN} more" if len(serious) > SHOWN else ""
    first = " · ".join(map(str, serious[:SHOWN]))
    skip = "; --skip-bad-boxes leaves the faulty ones out" if all(fault.skippable for fault in serious) else ""
    raise ValueError(f"{first}{more} · faster-rcnn check --data {source} lists all{skip}")
