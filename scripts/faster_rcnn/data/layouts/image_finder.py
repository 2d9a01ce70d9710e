"""Finds the image that an annotation means although the name is not the file's path from the annotations.

Annotations often come from another machine: they hold absolute paths, Windows paths, web addresses, percent-coded names
or the folders of a labelling tool. What remains the same is the end of the path.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import same_name
from faster_rcnn.data.layouts.split_names import meaning, of_path
from faster_rcnn.data.layouts.tree import Tree

_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts this before the name of an uploaded file
_LOCAL = re.compile(r"/data/local-files/?\?")  # Label Studio's address of a file on its own disk


class ImageFinder:
    """The images of a data set, found by the end of their paths. It remembers how many were found in this way."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._by_name: dict[str, list[str]] | None = None
        self.moved: dict[str, str] = {}  # the name in the annotations, if it is not the path's end → path from the root

    def find(self, name: str, split: str | None = None) -> Path | None:
        """The only image whose path ends as `name` does, with as many equal parts as possible.

        Letter case and Unicode's composed and decomposed forms count as equal. An image in the folder of another split
        than `split`, or than the one in `name`, is never taken, because several splits may have images of the same
        name. Returns None if there is no image, or no single best one.
        """
        for spelling in spellings(name):
            if found := self._best(spelling, split):
                if not f"/{found}".endswith(f"/{name}"):
                    self.moved[name] = found
                return self._tree.root / found
        return None

    def report(self, source: str, images: int) -> list[Fault]:
        """One warning with the number of images that were found in this way, out of `images`."""
        if not self.moved:
            return []
        name, path = next(iter(self.moved.items()))
        what = f"{len(self.moved)} of {images} images were found only by the end of their names; the first is {name}, "
        what += f"found as {path}"
        return [Fault("image found elsewhere", source, what, "check that they are the right ones", warning=True)]

    def _best(self, name: str, split: str | None) -> str | None:
        if self._by_name is None:
            self._by_name = {}
            for path in self._tree.images:
                self._by_name.setdefault(same_name(path.rpartition("/")[2]), []).append(path)
        parts = same_name(name).split("/")
        wanted = meaning(split or "") or meaning(of_path(parts[:-1]) or "")
        scored: dict[int, list[str]] = {}
        for path in self._by_name.get(parts[-1], []):
            own = same_name(path).split("/")
            if wanted is None or meaning(of_path(own[:-1]) or "") in (None, wanted):
                scored.setdefault(_equal_at_end(parts, own), []).append(path)
        best = scored[max(scored)] if scored else []
        return best[0] if len(best) == 1 else None


def spellings(name: str) -> Iterator[str]:
    """The paths that a name may stand for, the most literal first, with `/` between their parts."""
    seen: dict[str, None] = {name.replace("\\", "/"): None}
    if "://" in name or _LOCAL.match(name):
        with contextlib.suppress(ValueError):  # not a web address after all
            address = urlsplit(name)
            seen[parse_qs(address.query).get("d", [unquote(address.path)])[0].replace("\\", "/")] = None
    seen[unquote(name).replace("\\", "/")] = None
    for path in list(seen):
        folder, _, last = path.rpartition("/")
        if upload := _UPLOAD.fullmatch(last):
            seen[f"{folder}/{upload[1]}" if folder else upload[1]] = None
    for path in seen:
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        if parts and "\0" not in path:
            yield "/".join(parts)


def _equal_at_end(one: list[str], other: list[str]) -> int:
    equal = 0
    while equal < min(len(one), len(other)) and one[-1 - equal] == other[-1 - equal]:
        equal += 1
    return equal
