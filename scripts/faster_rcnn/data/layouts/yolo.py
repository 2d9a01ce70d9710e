"""Where the files of a YOLO data set are: images, and for each a label file of the same name with `.txt`.

Ultralytics, Roboflow and CVAT describe the set in `data.yaml` (docs.ultralytics.com/datasets/detect), Darknet and
CVAT's "YOLO 1.1" in `obj.data`. LabelImg and Label Studio write only the names of the classes, in `classes.txt`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from reprlib import repr as short

from faster_rcnn.data.annotations import AnnotatedImage, ParsedSplit, is_file
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.image_sizes import upright_size
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.image_finder import ImageFinder
from faster_rcnn.data.layouts.layout import Family, Layout
from faster_rcnn.data.layouts.tree import Tree, is_image, read_tree
from faster_rcnn.data.layouts.yolo_config import (
    NAME_FILES,
    Config,
    classes_of_file,
    find_darknet,
    find_names,
    find_yaml,
    why_not_yaml,
)
from faster_rcnn.data.layouts.yolo_labels import Classes, read_labels
from faster_rcnn.data.layouts.zip_cache import cache_folder

_IMAGE_FOLDERS = ("images", "jpegimages")  # the folders that `labels` replaces
_TRIED = 20  # text files whose beginning is read to recognise labels


def find_described(tree: Tree) -> Layout | None:
    """A data set with `data.yaml` or `obj.data`."""
    config = find_yaml(tree) or find_darknet(tree)
    if config is None:
        return None
    name = f"YOLO ({config.file.relative_to(tree.root).as_posix()})"
    if not config.places:
        raise ValueError(f"{config.file} names no images; add train: and val:")
    config = _without_absent_test(config)
    return Layout(name, tree.root, {split: partial(_read_described, tree, config, split) for split in config.places})


def find_with_names(tree: Tree) -> Layout | None:
    """Images and labels with nothing but a file of class names."""
    if not any(True for _ in _label_files(tree)) or (names := find_names(tree)) is None or not tree.images:
        return None
    classes = classes_of_file(names)
    splits: dict[str, list[Path]] = {}
    for path in tree.images:
        split = split_names.of_path(PurePosixPath(path).parts[:-1]) or split_names.ALL
        splits.setdefault(split, []).append(tree.root / path)
    name = f"YOLO ({names.relative_to(tree.root).as_posix()})"
    return Layout(
        name,
        tree.root,
        {split: partial(_read, tree, names, split, images, classes) for split, images in splits.items()},
    )


def near(tree: Tree) -> str:
    """Labels without the names of the classes."""
    if broken := why_not_yaml(tree):
        return f"YOLO, but {broken}; correct it"
    if any(True for _ in _label_files(tree)):
        return "YOLO, but data.yaml (or classes.txt) with the names of the classes is missing; add it"
    if tree.folders("labels") and tree.folders("images"):
        return "YOLO, but data.yaml and label files (labels/….txt) are missing"
    return ""


def _label_files(tree: Tree) -> Iterator[str]:
    """Text files that hold objects, among the first of each folder."""
    for folder, names in tree.by_folder.items():
        texts = [name for name in names if name.lower().endswith(".txt") and name.lower() not in NAME_FILES]
        yield from (name for name in texts[:_TRIED] if _holds_objects(tree.root / folder / name))


def _holds_objects(file: Path) -> bool:
    """Whether the first line of a text file is an object's: a class number and at least four numbers."""
    try:
        with file.open("rb") as opened:
            words = opened.read(2000).split(b"\n")[0].split()
    except OSError:
        return False
    return len(words) >= 5 and words[0].isdigit() and all(map(_is_number, words))


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_described(tree: Tree, config: Config, split: str) -> ParsedSplit:
    finder = ImageFinder(tree)
    images: list[Path] = []
    missing: list[str] = []
    for written in config.places[split]:
        place = _place(config, written)
        if place is None:
            raise ValueError(
                f"{config.file}: its {split} is {short(written)}, which is not there; correct it, or remove the line. "
                f"Found: {tree.listing()}"
            )
        if place.is_dir():
            images += [place / path for path in read_tree(place).images]
        else:
            images += _listed(place, config, finder, split, missing)
    parsed = _read(tree, config.file, split, list(dict.fromkeys(images)), config.classes)
    faults = [*config.faults, *finder.report(str(config.file), len(images))]
    for name in missing:
        what = f"split {split} lists {short(name)}, which is not there"
        faults.append(Fault("missing image", str(config.file), what, "add it or remove it from the list"))
    parsed.faults.extend(faults)
    return parsed


def _without_absent_test(config: Config) -> Config:
    """Roboflow and Ultralytics list a split for tests also where none was exported; it is left out with a warning."""
    absent = {
        split: places
        for split, places in config.places.items()
        if split_names.meaning(split) == split_names.TEST and not any(_place(config, written) for written in places)
    }
    if not absent or len(absent) == len(config.places):
        return config
    warnings = [
        Fault(
            "split that is not there",
            str(config.file),
            f"its {split} is {short(places[0])}, which is not there, so the data has no split {split}",
            "add the folder, or remove the line",
            warning=True,
        )
        for split, places in absent.items()
    ]
    places = {split: written for split, written in config.places.items() if split not in absent}
    return replace(config, places=places, faults=(*config.faults, *warnings))


def _place(config: Config, written: str) -> Path | None:
    """The folder or list that a description means, although it may have been written for another machine."""
    base, path = config.file.parent, PurePosixPath(written.replace("\\", "/"))
    root = PurePosixPath(config.root.replace("\\", "/"))
    ends = [path.parts[start:] for start in range(len(path.parts)) if path.parts[start] not in ("/", "..", ".")]
    # What is left of the path must still name the split, or `../valid/images` would find the images of all splits.
    ends = [end for end in ends if split_names.of_path(end) == split_names.of_path(path.parts)]
    candidates = [base / root / path, base / path, *(base / Path(*end) for end in ends)]
    return next((one for one in candidates if _may_be_read(base, one) and one.exists()), None)


def _may_be_read(base: Path, path: Path) -> bool:
    """What was unpacked from a zip file may come from anybody; it must not name files outside."""
    cache = cache_folder()
    is_unpacked = cache is not None and base.is_relative_to(cache)
    return not is_unpacked or path.resolve().is_relative_to(base.resolve())


def _listed(file: Path, config: Config, finder: ImageFinder, split: str, missing: list[str]) -> Iterator[Path]:
    """The images in a list, one path per line, relative to the list, to the description, or to its `path`."""
    if is_image(file.name):
        yield file
        return
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a list of images in UTF-8; save it as UTF-8 text") from error
    base, root = config.file.parent, config.root.replace("\\", "/")
    for line in filter(None, lines):
        name = line.replace("\\", "/")
        candidates = (file.parent / name, base / root / name, base / name)
        usable = (one for one in candidates if _may_be_read(base, one) and is_file(one))
        if found := next(usable, None) or finder.find(name, split):
            yield found
        else:
            missing.append(line)


def _read(tree: Tree, where: Path, split: str, paths: list[Path], classes: Classes) -> ParsedSplit:
    """Reads the labels of the images.

    Raises ValueError if there are no images, or none has a label file.
    """
    if not paths:
        raise ValueError(f"{where}: split {split} has no images; found: {tree.listing()}")
    labels = {path: _label_file(path) for path in paths}
    if not any(labels.values()):
        labels = _labels_by_stem(tree, paths, split)
    if not any(labels.values()):
        raise ValueError(
            f"{where}: none of the {len(paths)} images of split {split} has a label file; {paths[0]} needs "
            f"{_label_places(paths[0])[0]} (an empty file means no objects)"
        )
    images: list[AnnotatedImage] = []
    faults: list[Fault] = []
    for path, file in labels.items():
        try:
            width, height = upright_size(path)
        except (ValueError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            what = f"{path.name} cannot be read: {why}"
            faults.append(Fault("unreadable image", str(path), what, "replace it or remove it"))
            continue
        objects, found = ([], []) if file is None else read_labels(file, (width, height), classes)
        faults += found
        images.append(AnnotatedImage(path.name, path, height, width, str(file or path), objects))
    faults += _leftovers(tree, where, split, labels)
    return ParsedSplit(f"yolo:{tree.root}", split, classes.names, images, faults)


def _leftovers(tree: Tree, where: Path, split: str, labels: dict[Path, Path | None]) -> Iterable[Fault]:
    """Warnings about images without labels, and labels without images."""
    if without := [path for path, file in labels.items() if file is None]:
        what = f"split {split}: {len(without)} of {len(labels)} images have no label file, and count as images without "
        what += f"objects; the first is {without[0].name}"
        remedy = "remove them if they have not been annotated"
        yield Fault("image without annotations", str(where), what, remedy, warning=True)
    folders = {file.parent for file in labels.values() if file is not None}
    stems = {PurePosixPath(path).stem for path in tree.images} | {path.stem for path in labels}
    texts = sorted(file for folder in folders for file in folder.glob("*.txt") if file.stem not in stems)
    unused = [file for file in texts if file.name.lower() not in NAME_FILES and _holds_objects(file)]
    if unused:
        what = f"split {split}: {len(unused)} label files belong to no image; the first is {unused[0].name}"
        yield Fault("labels without an image", str(where), what, "add the images, or remove the files", warning=True)


def _label_places(image: Path) -> list[Path]:
    """Where the label file of an image may be, the usual place first."""
    places = []
    parts = list(image.with_suffix(".txt").parts)
    at = [place for place, part in enumerate(parts[:-1]) if part.lower() in _IMAGE_FOLDERS]
    if at:
        places.append(Path(*parts[: at[-1]], "labels", *parts[at[-1] + 1 :]))
    name, folder = f"{image.stem}.txt", image.parent
    places += [folder / name, folder.parent / "labels" / folder.name / name]
    return [*places, folder / "labels" / name, folder.parent / "labels" / name]


def _label_file(image: Path) -> Path | None:
    return next((place for place in _label_places(image) if is_file(place)), None)


def _labels_by_stem(tree: Tree, paths: list[Path], split: str) -> dict[Path, Path | None]:
    """The label files anywhere in the data set, by the stems of the images; not those of another split."""
    by_stem: dict[str, list[Path]] = {}
    for path in tree.files(".txt"):
        own = split_names.of_path(PurePosixPath(path).parts[:-1])
        if own is None or split_names.meaning(own) == split_names.meaning(split):
            by_stem.setdefault(PurePosixPath(path).stem, []).append(tree.root / path)
    found = {path: by_stem.get(path.stem, []) for path in paths}
    return {path: files[0] if len(files) == 1 else None for path, files in found.items()}


FAMILY = Family(
    "yolo", "YOLO: data.yaml or obj.data, or classes.txt, with a label file (.txt) for each image", find_described, near
)
WITHOUT_CONFIG = Family("yolo", FAMILY.looked_for, find_with_names, near)
