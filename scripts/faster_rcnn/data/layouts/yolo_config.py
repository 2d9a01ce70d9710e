"""The files that describe a YOLO data set, or name its classes.

`data.yaml`: Ultralytics, Roboflow and CVAT; `obj.data`: Darknet and CVAT; lists of class names: LabelImg, Label Studio.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml

from faster_rcnn.data.faults import Fault
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.tree import Tree
from faster_rcnn.data.layouts.yolo_labels import Classes

LARGEST = 1_000_000  # bytes of a file of settings
NAME_FILES = ("classes.txt", "obj.names", "predefined_classes.txt", "class_names.txt", "labels.txt", "names.txt")


@dataclass(frozen=True)
class Config:
    """A YOLO data set.  file: what describes it;  root: the folder that its paths are relative to, as it says.

    places: the folders and lists of images of each split, by the split's name in the file.
    """

    file: Path
    root: str
    places: Mapping[str, tuple[str, ...]]
    classes: Classes
    faults: tuple[Fault, ...] = ()


def find_yaml(tree: Tree) -> Config | None:
    """The `data.yaml` of a folder, under any name.

    Raises ValueError if several fit, or the class names in it cannot be understood.
    """
    found = {path: text for path in sorted(tree.files(".yaml .yml"), key=_depth)[:50] if (text := _yaml(tree, path))}
    if not found:
        return None
    usual = [path for path in found if Path(path).stem.lower() in ("data", "dataset")] or list(found)
    chosen = [path for path in usual if path.count("/") == usual[0].count("/")]  # the outermost
    if len(chosen) > 1:
        raise ValueError(f"{tree.root} holds several descriptions of YOLO data, {', '.join(chosen)}; name one of them")
    file, document = tree.root / chosen[0], found[chosen[0]]
    classes, faults = _classes(file, document)
    places = {
        name: _places(file, name, value)
        for name, value in document.items()
        if split_names.meaning(name) and value not in ("", [], None, "null", "~")
    }
    root = document.get("path", "")
    return Config(file, root if isinstance(root, str) else "", places, classes, tuple(faults))


def find_darknet(tree: Tree) -> Config | None:
    """Darknet's `obj.data`: a line `name = value` for each list of images, and for the file of class names."""
    for path in sorted(tree.files(".data"), key=_depth)[:50]:
        file = tree.root / path
        pairs = [line.partition("=") for line in _text(file).splitlines()]
        settings = {name.strip(): value.strip() for name, sign, value in pairs if sign}
        places = {name: (value,) for name, value in settings.items() if split_names.meaning(name) and value}
        if "names" not in settings or not places:
            continue
        listed = [file.parent / settings["names"], file.parent / Path(settings["names"].replace("\\", "/")).name]
        if not (names := next((one for one in listed if one.is_file()), None)):
            raise ValueError(f"{file} names {settings['names']}, which is not there; add the file of class names")
        return Config(file, "", places, classes_of_file(names))
    return None


def classes_of_file(file: Path) -> Classes:
    """The classes in a file with one name per line.

    Raises ValueError if it is empty, or a name is empty or occurs twice.
    """
    names = [line.strip() for line in _text(file).splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"{file}: not a list of class names; write one name per line, without gaps and repetitions")
    return Classes({number: number for number in range(len(names))}, tuple(names))


def find_names(tree: Tree) -> Path | None:
    """The file of class names in a folder; Label tools write it into every folder of labels.

    Raises ValueError if several differ.
    """
    files = [tree.root / path for path in tree.files(".txt .names") if Path(path).name.lower() in NAME_FILES]
    files = sorted(files, key=lambda file: NAME_FILES.index(file.name.lower()))
    contents = {tuple(_text(file).split("\n")) for file in files if file.name.lower() == files[0].name.lower()}
    if len(contents) > 1:
        raise ValueError(f"{tree.root} holds several files {files[0].name} that differ; keep the right one")
    return files[0] if files else None


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _text(file: Path) -> str:
    """The text of a small file; "" if it is not text."""
    if file.stat().st_size > LARGEST:
        return ""
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _yaml(tree: Tree, path: str) -> dict[str, Any]:
    """The members of a YAML file that describes YOLO data, else none. Every scalar stays text: `no` is a class."""
    try:
        document = yaml.load(_text(tree.root / path), yaml.BaseLoader)  # makes text, lists and mappings only
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(document, dict) or not ("names" in document or "nc" in document):
        return {}
    members = {str(name): value for name, value in document.items()}
    return members if any(map(split_names.meaning, members)) else {}


def why_not_yaml(tree: Tree) -> str:
    """Which description of the data is not YAML, and in which line; "" if each of them is."""
    for path in sorted(tree.files(".yaml .yml"), key=_depth)[:50]:
        try:
            yaml.load(_text(tree.root / path), yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            return f"{path} is not YAML" + (f": see line {mark.line + 1}, column {mark.column + 1}" if mark else "")
        except (yaml.YAMLError, RecursionError, ValueError):
            return f"{path} is not YAML"
    return ""


def _classes(file: Path, document: Mapping[str, Any]) -> tuple[Classes, list[Fault]]:
    names = document.get("names")
    keypoints = "kpt_shape" in document
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    # Every name must be text already: to write out nested lists with aliases could take all memory.
    if isinstance(names, dict) and all(
        isinstance(number, str) and number.isdecimal() and len(number) < 10 and isinstance(name, str)
        for number, name in names.items()
    ):
        numbered = {int(number): name.strip() for number, name in names.items()}
    elif names in (None, "") and (count := _count(document.get("nc"))):
        numbered = {number: f"class_{number}" for number in range(count)}
        what = f"it has no names, only nc: {document['nc']}; the classes are called class_0, class_1 …"
        warning = Fault("classes without names", str(file), what, "add names", warning=True, skippable=False)
        return _in_order(numbered, keypoints), [warning]
    else:
        raise ValueError(
            f"{file}: its names are {short(document.get('names'))}; write a list of class names, or number: name"
        )
    if not numbered or not all(numbered.values()):
        raise ValueError(f"{file}: its names are {short(names)}; give every class a name")
    twice = sorted(name for name, count in Counter(numbered.values()).items() if count > 1)
    what = f"its names have {', '.join(twice)} more than once"
    faults = [Fault("class listed twice", str(file), what, "rename one", skippable=False)] if twice else []
    return _in_order(numbered, keypoints), faults


def _count(text: object) -> int:
    """The whole number in `text`, up to 99,999; 0 if it is none."""
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) <= 5 else 0


def _in_order(numbered: Mapping[int, str], keypoints: bool) -> Classes:
    order = sorted(numbered)
    numbers = {number: label for label, number in enumerate(order)}
    return Classes(numbers, tuple(numbered[number] for number in order), keypoints)


def _places(file: Path, split: str, value: Any) -> tuple[str, ...]:
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one for one in places):
        raise ValueError(f"{file}: its {split} is {short(value)}; write the path of a folder or a list of images")
    return tuple(places)
