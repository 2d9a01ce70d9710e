"""What can be wrong with annotated images: each fault says where it is, what was found and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 3  # faults that a refusal names; it stays one line that can be read


@dataclass(frozen=True)
class Fault:
    """kind: a few words, the same for all faults alike;  where: file, and line where there is one.

    An error keeps training from starting; a warning is only reported. What is `skippable` can be left out of the data
    (a box, an image); what is not concerns the whole (two classes of one name).
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
    """`text` on one line, whatever a file had in it: line breaks and broken characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def stopping(faults: Sequence[Fault], skip_bad_boxes: bool) -> list[Fault]:
    """The errors among the faults, less those that can be skipped if they are to be."""
    return [fault for fault in faults if not fault.warning and not (skip_bad_boxes and fault.skippable)]


def refuse(faults: Sequence[Fault], source: str, skip_bad_boxes: bool) -> None:
    """Raises ValueError if training cannot start with these faults, naming the first few of them in one line."""
    serious = stopping(faults, skip_bad_boxes)
    if not serious:
        return
    more = f" · and {len(serious) - SHOWN} more" if len(serious) > SHOWN else ""
    first = " · ".join(map(str, serious[:SHOWN]))
    skip = "; --skip-bad-boxes leaves out what is faulty" if all(fault.skippable for fault in serious) else ""
    raise ValueError(f"{first}{more} · scripts/check_data.py --data {source} shows all{skip}")
