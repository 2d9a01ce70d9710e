"""Where the files of a data set in COCO's format are: COCO's own layout, those of other tools, and single files.

COCO as downloaded (cocodataset.org/#download), Roboflow (`_annotations.coco.json` in each split's folder), CVAT
(`annotations/instances_<subset>.json`), Label Studio (`result.json` beside `images`), FiftyOne (`labels.json` beside
`data`).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from faster_rcnn.data.annotations import ParsedSplit
from faster_rcnn.data.coco import read_coco
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.image_finder import ImageFinder
from faster_rcnn.data.layouts.json_kinds import COCO, describes_no_boxes, kind_of
from faster_rcnn.data.layouts.layout import Family, Layout, Reader
from faster_rcnn.data.layouts.tree import Tree

_ROBOFLOW = "_annotations.coco.json"
_MOST_FILES = 500  # more JSON files than this are one for each image, which is not COCO's way


def find(tree: Tree) -> Layout | None:
    """COCO's layout in a folder."""
    for folder in tree.folders("annotations"):
        names = [name for name in tree.by_folder[folder] if name.lower().endswith(".json")]
        of_boxes = [name for name in names if not describes_no_boxes(name[:-5])]
        kinds = {kind_of(tree.root / folder / name) for name in of_boxes}
        if COCO in kinds or None in kinds:  # None: a file that has to be refused with the reason
            files = {name[:-5].removeprefix("instances_"): f"{folder}/{name}" for name in of_boxes}
            return _layout(tree, "COCO (annotations/<split>.json)", files)
    files = _by_split(path for path in _json_files(tree) if kind_of(tree.root / path) == COCO)
    if not files:
        return None
    roboflow = all(path.endswith(_ROBOFLOW) for path in files.values())
    name = f"Roboflow's COCO (<split>/{_ROBOFLOW})" if roboflow else f"COCO ({', '.join(sorted(files.values())[:3])})"
    return _layout(tree, name, files)


def near(tree: Tree) -> str:
    """COCO's folder of annotations without any boxes."""
    if of_others := [path for path in _json_files(tree) if describes_no_boxes(PurePosixPath(path).stem)]:
        return f"COCO, but {', '.join(of_others[:3])} describe no boxes; add annotations/instances_<split>.json"
    return ""


def _json_files(tree: Tree) -> list[str]:
    files = list(tree.files(".json"))
    return files if len(files) <= _MOST_FILES else []


def _by_split(paths: Iterable[str]) -> dict[str, str]:
    """The files by the split that their names or folders tell; a single file without a split is the whole set."""
    found = list(paths)
    named = [(_split_of(path), path) for path in found]
    if len(found) == 1:
        return {named[0][0] or split_names.ALL: found[0]}
    splits = [split for split, _ in named]
    if None in splits or len(set(splits)) < len(splits):
        return {path[:-5]: path for path in found}
    return {split: path for split, path in named if split}


def _split_of(path: str) -> str | None:
    """The word in a file's name that means train, val or test, or else the innermost folder that does."""
    pure = PurePosixPath(path)
    words = [word for word in re.split(r"[^A-Za-z0-9]+", pure.stem) if split_names.meaning(word)]
    return words[-1] if words else split_names.of_path(pure.parts[:-1])


def _layout(tree: Tree, name: str, files: dict[str, str]) -> Layout:
    def reader(split: str, path: str) -> Reader:
        others = [tree.root / other for other in sorted(files.values()) if other != path]
        return lambda: _read(tree, split, path, others)

    return Layout(name, tree.root, {split: reader(split, path) for split, path in files.items()})


def _read(tree: Tree, split: str, path: str, others: Sequence[Path]) -> ParsedSplit:
    finder = ImageFinder(tree)
    folder = tree.root / PurePosixPath(path).parent
    if folder.name.lower() == "annotations":
        folder = folder.parent
    parsed = read_coco(tree.root / path, folder, split, lambda name: finder.find(name, split), others)
    parsed.faults.extend(finder.report(str(tree.root / path), len(parsed.images)))
    return parsed


FAMILY = Family(
    "coco",
    "COCO: annotations/<split>.json, <split>/_annotations.coco.json, or one JSON file with images, categories and "
    "annotations",
    find,
    near,
)
