"""Where the files of a data set in Pascal VOC's format are: the development kit's layout, and XML files without lists.

Development kit and CVAT: `Annotations`, `JPEGImages`, `ImageSets/Main/<split>.txt`. Roboflow: XML beside the images in
each split's folder. LabelImg: XML beside the images. Label Studio: `Annotations` and `images`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from faster_rcnn.data.annotations import ParsedSplit, is_file, leads_outside
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.file_names import same_name
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.layout import Family, Layout
from faster_rcnn.data.layouts.tree import Tree, read_tree
from faster_rcnn.data.voc import Listed, VOCFiles, read_voc

NAME_AND_FLAG = re.compile(r"(.*\S)\s+-?[01]")  # a line of a list of one class, as in the development kit
_ROOT = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<annotation[\s>]", re.DOTALL)
_TRIED = 20  # XML files whose beginning is read to recognise the format


def find_listed(tree: Tree) -> Layout | None:
    """The development kit's layout: lists of images in `ImageSets/Main`."""
    folders = [
        lists.parent.parent
        for lists in map(PurePosixPath, tree.folders("Main"))
        if lists.parent.name == "ImageSets" and any(name.endswith(".txt") for name in tree.by_folder[str(lists)])
    ]
    if not folders:
        return None
    if len(folders) > 1:
        found = " and ".join(str(folder) for folder in folders[:3])
        raise ValueError(f"{tree.root} holds several data sets, {found}; name the folder of one")
    folder = tree.root / folders[0]
    splits = {split: partial(_read_listed, folder, split) for split in listed_splits(folder)}
    return Layout("Pascal VOC (ImageSets/Main/<split>.txt)", folder, splits)


def find_flat(tree: Tree) -> Layout | None:
    """XML files beside the images, or in a folder of their own."""
    files = list(tree.files(".xml"))
    if not any(_is_voc(tree.root / path) for path in files[:_TRIED]):
        return None
    splits: dict[str, list[Listed]] = {}
    for path in files:
        listed = Listed(path.removesuffix(".xml").removesuffix(".XML"), str(tree.root / path))
        splits.setdefault(_split_of(path), []).append(listed)
    name = "Pascal VOC (XML files, without lists of the splits)"
    return Layout(name, tree.root, {split: partial(_read_flat, tree, splits, split) for split in splits})


def listed_splits(folder: Path) -> list[str]:
    """The splits that are listed in `ImageSets/Main`, in alphabetical order.

    A file `<class>_<split>.txt` says which images show a class. It is not a split.
    """
    files = {file.stem: file for file in sorted((folder / "ImageSets" / "Main").glob("*.txt"))}

    def is_of_one_class(stem: str) -> bool:
        return any(stem.endswith(f"_{other}") for other in files) and _has_flags(files[stem])

    return [stem for stem in files if not stem.startswith(".") and not is_of_one_class(stem)]


def _read_listed(folder: Path, split: str) -> ParsedSplit:
    """Raises ValueError if a list is not text in UTF-8, or the split's own list is empty."""
    listed = {name: _listed(folder, name) for name in listed_splits(folder)}
    if not listed[split]:
        raise ValueError(f"{_list_file(folder, split)} lists no images; write one name per line")
    place = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    images: dict[str, list[Path]] = {}
    for path in sorted(read_tree(place).files() if place != folder else read_tree(place).images):
        name = path if place != folder else path.rpartition("/")[2]
        images.setdefault(name.rpartition(".")[0] or name, []).append(place / path)
    return read_voc(VOCFiles(folder / "Annotations", listed, images, place), split)


def _list_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a list of names in UTF-8 ({error.reason}); save it as UTF-8 text") from error


def _has_flags(file: Path) -> bool:
    return all(NAME_AND_FLAG.fullmatch(line) for line in _lines(file) if line)


def _listed(folder: Path, split: str) -> list[Listed]:
    """The names in a split's list.

    A second column and an image's extension are removed unless there is an annotation file with the longer name.
    """
    file = _list_file(folder, split)
    entries = []
    for number, line in enumerate(_lines(file), 1):
        if not line:
            continue
        column = NAME_AND_FLAG.fullmatch(line)
        candidates = [line, *([column[1]] if column else [])]
        candidates += [PurePosixPath(name).stem for name in candidates]
        existing = [name for name in candidates if is_file(folder / "Annotations" / f"{name}.xml")]
        name = existing[0] if existing else column[1] if column else line
        entries.append(Listed(line if leads_outside(line) else name, f"{file}:{number}"))
    return entries


def _is_voc(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return _ROOT.match(opened.read(2000).removeprefix(b"\xef\xbb\xbf")) is not None
    except OSError:
        return False


def _split_of(path: str) -> str:
    return split_names.of_path(PurePosixPath(path).parts[:-1]) or split_names.ALL


def _read_flat(tree: Tree, splits: dict[str, list[Listed]], split: str) -> ParsedSplit:
    images = _images_of(tree, (listed.name for entries in splits.values() for listed in entries))
    files = VOCFiles(tree.root, splits, images, tree.root)
    parsed = read_voc(files, split)
    if without := _without_annotations(tree, files, split):
        what = f"split {split}: {len(without)} of {len(without) + len(splits[split])} images have no XML file, and are "
        what += f"left out; the first is {without[0]}"
        remedy = "annotate them, or add an XML file without <object> for an image that shows none"
        parsed.faults.append(Fault("image without annotations", str(tree.root), what, remedy, warning=True))
    return replace(parsed, source=f"voc:{tree.root}")


def _images_of(tree: Tree, names: Iterable[str]) -> dict[str, list[Path]]:
    """The images of each annotation file: those beside it, or else those of the same stem in the same split.

    The images of each stem are there too, for annotation files that state the name of another image.
    """
    by_stem: dict[str, list[str]] = {}
    for path in tree.images:
        by_stem.setdefault(same_name(PurePosixPath(path).stem), []).append(path)
    found: dict[str, list[Path]] = {}
    for path in tree.images:
        found.setdefault(PurePosixPath(path).stem, []).append(tree.root / path)
    for name in names:
        folder, _, stem = name.rpartition("/")
        of_split = [path for path in by_stem.get(same_name(stem), []) if _split_of(path) == _split_of(name)]
        beside = [path for path in of_split if path.rpartition("/")[0] == folder]
        found[name] = [tree.root / path for path in beside or of_split]
    return found


def _without_annotations(tree: Tree, files: VOCFiles, split: str) -> list[str]:
    annotated = {path for entries in files.listed.values() for one in entries for path in files.images[one.name]}
    return [path for path in tree.images if _split_of(path) == split and tree.root / path not in annotated]


def near(tree: Tree) -> str:
    """What is missing of the development kit's layout."""
    if tree.folders("ImageSets") or tree.folders("JPEGImages"):
        missing = [name for name in ("JPEGImages", "Annotations", "ImageSets") if not tree.folders(name)]
        return f"Pascal VOC, but {' and '.join(missing) or 'every XML file in Annotations'} is missing"
    return ""


LISTED = Family(
    "voc", "Pascal VOC: Annotations, JPEGImages and ImageSets/Main/<split>.txt, or XML files beside the images",
    find_listed, near,
)  # fmt: skip
FLAT = replace(LISTED, find=find_flat)
