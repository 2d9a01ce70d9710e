"""Opens a data set by the value of `--data`: `shapes`, or a folder or file whose layout is found by itself.

`coco:`, `voc:` or `yolo:` before the path restricts the search to layouts of that family.
"""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from faster_rcnn.data.annotations import ParsedSplit
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.faults import printable, refuse
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.held_out import SHARE, divide, divided_split
from faster_rcnn.data.layouts.layout import Layout
from faster_rcnn.data.layouts.search import PREFIXES, find_layout
from faster_rcnn.data.shapes import SPLITS, Shapes

_said: set[str] = set()  # the lines that this process has printed


def open_dataset(
    source: str,
    split: str,
    seed: int = 0,
    skip_bad_boxes: bool = False,
    val_share: float | None = None,
    exif_boxes: str | None = None,
) -> Dataset:
    """Opens a split of a data set.

    source: `shapes` (generated from `seed` as it is read), or a folder, zip file or file of annotations, with or
    without the prefix of a family of layouts (docs/data.md).
    split: its name; `train`, `val` and `test` also find other spellings. A data set without splits is divided into
    `train` and `val`, and `all` is the whole of it.
    val_share: the share of images that is held out for `val`; None: 0.2 of a data set without splits, and nothing of
    one with a split for training.
    exif_boxes: see `FolderDataset`.

    Raises ValueError for an unknown kind of source or split, and for faulty annotations; the message lists the first
    faults. With `skip_bad_boxes`, faulty boxes and images are left out instead. Raises FileNotFoundError if no layout
    fits, and OSError if files cannot be read.
    """
    if source == "shapes":
        if val_share is not None:
            _say(f"--val-share {val_share:g} has no effect on generated images, which have a split for validation")
        return Shapes(split, seed=seed)
    dataset = open_folder(source, split, skip_bad_boxes, val_share, exif_boxes)
    refuse(dataset.faults, source, skip_bad_boxes)
    if not len(dataset):
        raise ValueError(f"{source}: split {split} has no image that can be used; add images")
    return dataset


def open_folder(
    source: str,
    split: str,
    skip_bad_boxes: bool = False,
    val_share: float | None = None,
    exif_boxes: str | None = None,
) -> FolderDataset:
    """Opens a split of a folder even if it has faults, which `faults` lists; faulty images and boxes are left out."""
    parsed = _with_distinct_names(replace(_read(source, _layout(source), split, val_share), source=source, split=split))
    return FolderDataset(parsed, skip_bad_boxes, exif_boxes)


def splits_of(source: str, val_share: float | None = None) -> list[str]:
    """The splits that a source has, including those that are made by holding images out.

    Raises ValueError for an unknown kind of source, FileNotFoundError if no layout fits.
    """
    if source == "shapes":
        return list(SPLITS)
    layout = _layout(source)
    divided = divided_split(layout, val_share)
    if divided is None:
        return split_names.shown(layout.splits)
    others = [name for name in layout.splits if name != divided]
    return [split_names.TRAIN, split_names.VAL, *split_names.shown(others)]


def share_to_hold_out(source: str, train_split: str, val_split: str, val_share: float | None) -> float | None:
    """`val_share`, or the default if training on `train_split` and `val_split` needs images to be held out."""
    if val_share is not None or source == "shapes" or (train_split, val_split) != (split_names.TRAIN, split_names.VAL):
        return val_share
    return SHARE if divided_split(_layout(source), SHARE) is not None else None


def _exists(place: str) -> bool:
    try:
        return Path(place).exists()
    except OSError:  # for example a name that is too long
        return False


def _layout(source: str) -> Layout:
    prefix, colon, rest = source.partition(":")
    named = bool(colon) and prefix in PREFIXES and not _exists(source)
    place = rest if named else source
    if not place or (not named and not _exists(place)):
        kinds = ", ".join(f"{one}:PATH" for one in PREFIXES)
        raise ValueError(
            f"--data {source!r}: unknown kind, and not a folder or file that exists; use a folder, a zip file, "
            f"a file of annotations, shapes for generated images, or one of {kinds}"
        )
    try:
        layout = find_layout(Path(place), prefix if named else "", source)
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"{error.filename or place} cannot be read ({error.strerror}); check its permissions") from error
    if not named:
        inside = "" if layout.folder == Path(place) or Path(place).is_file() else f" in {layout.folder}"
        splits = ", ".join(split_names.shown(layout.splits))
        _say(f"{source}: {layout.name}{inside}; splits: {'none' if splits == split_names.ALL else splits}")
    return layout


def _read(source: str, layout: Layout, split: str, val_share: float | None) -> ParsedSplit:
    """The images of a split, which may have to be made by dividing another one."""
    divided = divided_split(layout, val_share)
    found = split_names.match(split, layout.splits)
    meant = split_names.meaning(split)
    if divided is None or meant not in (split_names.TRAIN, split_names.VAL):
        if split == split_names.ALL and found is None:
            found = divided or (next(iter(layout.splits)) if len(layout.splits) == 1 else None)
        if found is None:
            raise FileNotFoundError(_no_such_split(source, layout, split, val_share))
        if val_share is not None and divided is None:
            _say(f"{source}: --val-share {val_share:g} has no effect, because the data has a split for validation")
        return layout.splits[found]()
    share = SHARE if val_share is None else val_share
    whole = replace(layout.splits[divided](), source=source)
    train, val = divide(whole, share)
    total = len(whole.images)
    what = "the data has no splits" if split_names.meaning(divided) is None else "the data has no split for validation"
    _say(
        f"{source}: {what}; by their file names, {len(train.images)} of {total} images are train and {len(val.images)} "
        f"are val ({len(val.images) / total:.1%}; --val-share {share:g}); --split all is every image"
    )
    return train if meant == split_names.TRAIN else val


def _no_such_split(source: str, layout: Layout, split: str, val_share: float | None) -> str:
    names = split_names.shown(layout.splits)
    could_be_made = val_share is None and split_names.meaning(split) == split_names.VAL
    remedy = "name one of them"
    if could_be_made and divided_split(layout, SHARE) is not None:
        remedy = f"--val-share {SHARE:g} holds out a fifth of train for validation"
    return f"{source} has no split {split} (splits found: {', '.join(names)}); {remedy}"


def _with_distinct_names(parsed: ParsedSplit) -> ParsedSplit:
    """Names images by their paths where several files have the same name."""
    counts = Counter(image.name for image in parsed.images)
    if len(counts) == len(parsed.images):
        return parsed
    root = Path(os.path.commonpath([image.path.parent.absolute() for image in parsed.images]))
    images = [
        replace(image, name=image.path.absolute().relative_to(root).as_posix()) if counts[image.name] > 1 else image
        for image in parsed.images
    ]
    return replace(parsed, images=images)


def _say(line: str) -> None:
    """Prints a line once, in the first of the processes that train together."""
    if line not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(line)
        print(printable(line))
