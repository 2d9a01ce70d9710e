"""Label Studio's own formats, JSON and JSON-MIN: a list of tasks, each with an image and the shapes drawn on it.

Coordinates are percentages of the image's width and height (labelstud.io/guide/export, labelstud.io/tags/rectangle).
Its exports as COCO, VOC and YOLO are read like those of other tools.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeGuard

from faster_rcnn.data.annotations import LONGEST_SIDE, AnnotatedImage, Annotation, ParsedSplit
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.image_sizes import upright_size
from faster_rcnn.data.json_lists import JSONList, decode_list, read_text
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.image_finder import ImageFinder
from faster_rcnn.data.layouts.json_kinds import LABEL_STUDIO, kind_of
from faster_rcnn.data.layouts.layout import Family, Layout
from faster_rcnn.data.layouts.shapes_to_boxes import BEYOND, Box, box_around, clipped, ellipse_box, turned
from faster_rcnn.data.layouts.tree import Tree, is_image
from faster_rcnn.data.repairs import Repairs
from faster_rcnn.data.syntax_errors import json_fault

_MOST_FILES = 500
_SHAPES = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_WITHOUT_BOX = ("brushlabels", "bitmasklabels", "keypointlabels", "vectorlabels")
_META = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")


def find(tree: Tree) -> Layout | None:
    """A JSON file of tasks, with the images anywhere in its folder or below."""
    paths = list(tree.files(".json"))
    files = [tree.root / path for path in paths[:_MOST_FILES] if kind_of(tree.root / path) == LABEL_STUDIO]
    if not files:
        return None
    if len(files) > 1:
        named = ", ".join(file.relative_to(tree.root).as_posix() for file in files[:3])
        raise ValueError(f"{tree.root} holds several exports of Label Studio, {named}; name one of them")
    name = f"Label Studio ({files[0].relative_to(tree.root).as_posix()})"
    return Layout(name, tree.root, {split_names.ALL: partial(_read, tree, files[0])})


@dataclass
class _Counts:
    """What was left out or decided, for one report."""

    without_annotations: list[str] = field(default_factory=list)
    several_annotations: list[str] = field(default_factory=list)
    without_box: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Task:
    image: str
    where: str
    shapes: list[dict[str, Any]]


def _read(tree: Tree, file: Path) -> ParsedSplit:
    """Classes are numbered in alphabetical order.  Raises ValueError if the file is not JSON or has no boxes."""
    faults: list[Fault] = []
    counts = _Counts()
    tasks = list(_tasks(file, faults, counts))
    labels = tuple(sorted({name for task in tasks for shape in task.shapes for name in _names(shape)}))
    if not labels:
        raise ValueError(f"{file}: no task has a labelled box, polygon or ellipse; annotate some images")
    label_of = {name: label for label, name in enumerate(labels)}
    finder = ImageFinder(tree)
    images: list[AnnotatedImage] = []
    repairs = Repairs(split_names.ALL)
    for task in tasks:
        if image := _image(task, finder, faults):
            images.append(image)
            _add_objects(image, task, label_of, faults, counts, repairs)
    faults += [*finder.report(str(file), len(images)), *_report(counts, file, len(tasks))]
    faults += repairs.faults({"shapes": sum(len(image.annotations) for image in images)})
    return ParsedSplit(f"label-studio:{file}", split_names.ALL, labels, images, faults)


def _tasks(file: Path, faults: list[Fault], counts: _Counts) -> Iterator[_Task]:
    try:
        elements: JSONList = decode_list(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {json_fault(error)}; export it again from Label Studio") from error
    for value, place in elements:
        where = f"{file}:{place}"
        image = _image_of(value) if isinstance(value, dict) else None
        if image is None:
            what = f"this task is {short(value)}, without an image"
            faults.append(Fault("malformed image", where, what, "correct or remove it"))
            continue
        shapes = _shapes_of(value, image, counts)
        if shapes is None:
            counts.without_annotations.append(image)
        else:
            yield _Task(image, where, shapes)


def _image_of(task: Mapping[str, Any]) -> str | None:
    """The address of the task's image: the value of `data.image`, or whatever the project calls it."""
    data = task.get("data", {name: value for name, value in task.items() if name not in _META})
    if not isinstance(data, Mapping):
        return None
    texts = [value for name, value in data.items() if isinstance(value, str) and value]
    named = [data[name] for name in ("image", "img", "url", "captioning") if isinstance(data.get(name), str)]
    return next(iter([*named, *(text for text in texts if is_image(text) or is_image(text.partition("?")[0]))]), None)


def _shapes_of(task: Mapping[str, Any], image: str, counts: _Counts) -> list[dict[str, Any]] | None:
    """The shapes of the annotation that counts; None if the task has not been annotated.

    Of several annotations, one that is marked as the ground truth counts, or else the last.
    """
    if "data" not in task:  # JSON-MIN: the shapes are members of the task, under the names of the tags
        lists = [value for name, value in task.items() if isinstance(value, list) and name not in _META]
        return [shape for one in lists for shape in one if isinstance(shape, dict)]
    given = task.get("annotations", task.get("completions", []))
    done = [one for one in given if isinstance(one, dict) and not one.get("was_cancelled")] if given else []
    if not done:
        return None
    if len(done) > 1:
        counts.several_annotations.append(image)
    chosen = next((one for one in done if one.get("ground_truth")), done[-1])
    results = [
        one for one in chosen.get("result") or [] if isinstance(one, dict) and isinstance(one.get("value"), dict)
    ]
    # A tag without labels of its own writes a shape twice, under one id: alone, and with its label.
    labelled = {str(one.get("id")) for one in results if _names(one["value"])}
    sides = ("original_width", "original_height")
    return [
        one["value"] | {side: one[side] for side in sides if side in one}
        for one in results
        if _names(one["value"]) or str(one.get("id")) not in labelled
    ]


def _names(shape: Mapping[str, Any]) -> list[str]:
    """The classes of a shape; none if it is not one that has a box."""
    if "x" not in shape and "points" not in shape:
        return []
    given = [shape[kind] for kind in _SHAPES if isinstance(shape.get(kind), list)]
    return [str(name).strip() for name in given[0] if str(name).strip()] if given else []


def _image(task: _Task, finder: ImageFinder, faults: list[Fault]) -> AnnotatedImage | None:
    path = finder.find(task.image)
    if path is None:
        what = f"image {short(task.image)} is not in the folder of the file, nor below"
        remedy = "Label Studio's JSON has no images: put them beside it, or export as COCO, VOC or YOLO with images"
        faults.append(Fault("missing image", task.where, what, remedy))
        return None
    sizes = [(shape.get("original_width"), shape.get("original_height")) for shape in task.shapes]
    known = [(int(w), int(h)) for w, h in sizes if _is_side(w) and _is_side(h)]
    try:
        width, height = known[0] if known else upright_size(path)
    except (ValueError, OSError):
        what = f"{path.name} cannot be read"
        faults.append(Fault("unreadable image", task.where, what, "replace it or remove it"))
        return None
    return AnnotatedImage(path.name, path, height, width, task.where)


def _is_side(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= LONGEST_SIDE


def _add_objects(
    image: AnnotatedImage,
    task: _Task,
    label_of: Mapping[str, int],
    faults: list[Fault],
    counts: _Counts,
    repairs: Repairs,
) -> None:
    for number, shape in enumerate(task.shapes, 1):
        if left_out := [kind for kind in _WITHOUT_BOX if kind in shape]:
            counts.without_box[left_out[0]] += 1
            continue
        names = _names(shape)
        if "x" not in shape and "points" not in shape:
            continue  # a choice, a rating or a text about the whole image
        title = f"shape {number} ({', '.join(names) or 'without label'})"
        if not names:
            counts.without_box["shapes without a label"] += 1
            continue
        try:
            box = _box(shape, image.width, image.height)
        except (KeyError, ValueError, TypeError):
            what = f"{title}: its coordinates are not numbers"
            faults.append(Fault("malformed annotation", task.where, what, "correct or remove it"))
            continue
        turned_or_round = "radiusX" in shape or shape.get("rotation")
        if turned_or_round and (inside := clipped(box, image.width, image.height)) != box:
            repairs.count(BEYOND, task.where, f"{title} in {image.name}")
            box = inside
        written = f"[{', '.join(f'{value:g}' for value in box)}]"
        for name in names:
            image.annotations.append(Annotation(task.where, title, written, box, label_of[name]))


def _box(shape: Mapping[str, Any], width: int, height: int) -> Box:
    """The upright box around a shape, in pixels.

    Raises KeyError, TypeError or ValueError if a coordinate is missing or not a number.
    """
    across, down = width / 100, height / 100
    if "points" in shape:
        box = box_around([(x * across, y * down) for x, y in shape["points"]])
    elif "radiusX" in shape:
        radii = shape["radiusX"] * across, shape["radiusY"] * down
        box = ellipse_box(shape["x"] * across, shape["y"] * down, *radii, shape.get("rotation") or 0)
    else:
        x, y = shape["x"] * across, shape["y"] * down
        x2, y2 = x + shape["width"] * across, y + shape["height"] * down
        corners = [(x, y), (x2, y), (x2, y2), (x, y2)]
        box = box_around(turned(corners, (x, y), shape.get("rotation") or 0))  # about the first corner
    if not all(map(math.isfinite, box)):
        raise ValueError(box)
    return box


def _report(counts: _Counts, file: Path, tasks: int) -> Iterator[Fault]:
    if counts.without_annotations:
        number, first = len(counts.without_annotations), counts.without_annotations[0]
        what = f"{number} of {number + tasks} tasks have not been annotated, and are left out; the first is {first}"
        remedy = "submit an empty annotation for an image without objects"
        yield Fault("image without annotations", str(file), what, remedy, warning=True)
    if counts.several_annotations:
        number, first = len(counts.several_annotations), counts.several_annotations[0]
        what = (
            f"{number} tasks have several annotations, of which the ground truth or else the last is used; the first "
        )
        what += f"is {first}"
        yield Fault("several annotations", str(file), what, "keep one for each task", warning=True)
    for kind, number in counts.without_box.items():
        what = f"{number} × {kind} have no box and are left out"
        yield Fault("annotation without a box", str(file), what, "draw boxes or polygons", warning=True)


FAMILY = Family("label-studio", "Label Studio: one JSON file of tasks beside the images", find)
