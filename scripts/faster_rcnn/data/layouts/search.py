"""Finds the layout of a data set, or says which one comes nearest."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

from faster_rcnn.data.annotations import is_file
from faster_rcnn.data.faults import printable
from faster_rcnn.data.layouts import coco_files, cvat, label_studio, voc_files, yolo
from faster_rcnn.data.layouts.json_kinds import FOREIGN, kind_of
from faster_rcnn.data.layouts.layout import Family, Layout, UnknownLayoutError
from faster_rcnn.data.layouts.tree import Tree, read_tree
from faster_rcnn.data.layouts.zip_cache import unpacked
from faster_rcnn.data.shown_paths import show_as

FAMILIES: tuple[Family, ...] = (
    voc_files.LISTED,
    coco_files.FAMILY,
    yolo.FAMILY,
    cvat.FAMILY,
    label_studio.FAMILY,
    voc_files.FLAT,
    yolo.WITHOUT_CONFIG,
)
PREFIXES = tuple(dict.fromkeys(family.prefix for family in FAMILIES))
_DEEPEST = 6  # folders that hold nothing but another folder
_OF_FILES = {  # the families that a single file can belong to, by its extension
    ".json": ("coco", "label-studio"),
    ".xml": ("cvat",),
    ".yaml": ("yolo",),
    ".yml": ("yolo",),
    ".data": ("yolo",),
}
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".rar", ".7z", ".tar.bz2", ".tar.xz")


def find_layout(place: Path, prefix: str = "", named: str = "") -> Layout:
    """The layout of a folder, a zip file, or one file of annotations.

    prefix: a family's, to look for its layouts only;  named: the place as the user named it, for messages.

    Raises FileNotFoundError if there is no such place or no layout fits; ValueError if two fit in a way that leaves
    open which is meant, or if a file cannot be used; OSError if it cannot be read.
    """
    families = [family for family in FAMILIES if prefix in ("", family.prefix)]
    named = named or str(place)
    is_folder = os.path.isdir(place)  # noqa: PTH112 - False, not an error, for a name that is too long
    if not is_folder and not is_file(place):
        raise FileNotFoundError(f"{named} does not exist, or is neither a folder nor a file; check the path")
    if is_folder:
        return _in_folder(place, families, named)
    if place.name.lower().endswith(_ARCHIVES):
        raise ValueError(f"{named}: only zip files are read, not this kind of archive; unpack it and name the folder")
    if place.suffix.lower() == ".zip":
        contents = unpacked(place)
        show_as(contents, place)
        return _in_folder(contents, families, named)
    return _around_file(place, families, named)


def _in_folder(folder: Path, families: list[Family], named: str) -> Layout:
    """The first family's layout that fits, in the folder or in the only folder in it."""
    tree = read_tree(folder)
    deeper: Path | None = folder
    for _ in range(_DEEPEST):
        assert deeper is not None
        inner = read_tree(deeper) if deeper != folder else tree
        for place, family in enumerate(families):
            if layout := family.find(inner):
                return _with_alternative(layout, inner, family, families[place + 1 :])
        if (deeper := inner.only_folder()) is None:
            break
    raise UnknownLayoutError(_why_nothing_fits(tree, families, named))


def _with_alternative(layout: Layout, tree: Tree, family: Family, others: list[Family]) -> Layout:
    """The layout, whose name says so if the folder fits another family too."""
    for other in others:
        if other.prefix == family.prefix:
            continue
        with contextlib.suppress(ValueError):
            if second := other.find(tree):
                return replace(layout, name=f"{layout.name}, not {second.name}, which {other.prefix}: reads")
    return layout


def _around_file(file: Path, families: list[Family], named: str) -> Layout:
    """The layout of one file of annotations, with the images in its folder and below, or beside `annotations`."""
    families = [family for family in families if family.prefix in _OF_FILES.get(file.suffix.lower(), ())]
    tree = read_tree(file.parent.parent if file.parent.name.lower() == "annotations" else file.parent)
    others = frozenset(_OF_FILES)
    alone = Tree(
        tree.root,
        {
            folder: [
                name for name in names if (tree.root / folder / name) == file or Path(name).suffix.lower() not in others
            ]
            for folder, names in tree.by_folder.items()
        },
    )
    for family in families:
        if layout := family.find(alone):
            return layout
    what = FOREIGN.get(kind_of(file) or "", "")
    raise UnknownLayoutError(
        f"{named}: no file of annotations that is known{what and f'; it is {what}'}; name a folder, a zip file, a JSON "
        "file of COCO or Label Studio, CVAT's annotations.xml, or a data.yaml"
    )


def _why_nothing_fits(tree: Tree, families: list[Family], named: str) -> str:
    looked = "; ".join(dict.fromkeys(family.looked_for for family in families))
    near = next((text for family in families if (text := family.near(tree))), "")
    near = near or _foreign(tree) or _elsewhere(tree, families)
    nearest = f" Nearest: {near}." if near else ""
    return printable(
        f"{named}: the layout is not known. Found: {tree.listing()}.{nearest} Looked for: {looked}; see docs/data.md"
    )


def _elsewhere(tree: Tree, families: list[Family]) -> str:
    """A layout that fits but was excluded by the prefix, or what else the folder holds."""
    for family in FAMILIES:
        if family not in families and (layout := family.find(tree)):
            return f"it fits {layout.name}; use {family.prefix}:, or leave out the prefix"
    if archives := [name for name in tree.files() if name.lower().endswith((".zip", *_ARCHIVES))]:
        return f"it holds {short(archives[0])}; name a zip file itself, and unpack other archives"
    if tree.images:
        return f"it holds {len(tree.images)} image{'s' * (len(tree.images) > 1)} without annotations"
    return ""


def _foreign(tree: Tree) -> str:
    """Annotations in a format of another tool."""
    for path in tree.files(".json .jsonl .csv .tfrecord .record"):
        suffix = Path(path).suffix.lower()
        kind = kind_of(tree.root / path) if suffix == ".json" else suffix
        if kind in FOREIGN:
            return f"{path} is {FOREIGN[kind]}"
        break
    return ""
