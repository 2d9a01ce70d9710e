"""Repairs of annotations: what a reader completed or understood in another way than it is written, with the numbers.

A fault concerns one box or image, and each is listed. A repair is the same for many of them, so that each kind of it
becomes one warning for a split.
"""

from collections import Counter
from dataclasses import dataclass

from faster_rcnn.data.faults import Fault


@dataclass(frozen=True)
class Repair:
    """One kind of repair.

    kind: a few words, as in `Fault`;  of: what is counted, in the plural;  what: continues "3 of 7 <of>";  remedy: as
    in `Fault`.
    """

    kind: str
    of: str
    what: str
    remedy: str


class Repairs:
    """Counts the repairs of a split."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._counts: Counter[Repair] = Counter()
        self._firsts: dict[Repair, tuple[str, str]] = {}

    def count(self, repair: Repair, where: str, example: str = "") -> None:
        """Counts one more. Only the first place (file and line) and example are kept."""
        self._counts[repair] += 1
        self._firsts.setdefault(repair, (where, example))

    def faults(self, totals: dict[str, int]) -> list[Fault]:
        """One warning for each kind.  totals: how many there are of each `Repair.of`."""
        found = []
        for repair, count in self._counts.items():
            where, example = self._firsts[repair]
            what = f"split {self._split}: {count} of {totals[repair.of]} {repair.of} {repair.what}"
            what += f"; the first is {example}" if example else ""
            found.append(Fault(repair.kind, where, what, repair.remedy, warning=True))
        return found
