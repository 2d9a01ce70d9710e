"""Divides a data set that has no validation split: a share of its images is held out for validation.

An image's part depends on its name alone. So the parts are the same in every command and on every machine, and an image
stays in its part when others are added.
"""

import hashlib
from dataclasses import replace
from pathlib import PurePosixPath

from faster_rcnn.data.annotations import AnnotatedImage, ParsedSplit
from faster_rcnn.data.layouts import split_names
from faster_rcnn.data.layouts.layout import Layout

SHARE = 0.2  # of the images, for validation
_SALT = "held out"  # another one would divide every data set differently


def divided_split(layout: Layout, share: float | None) -> str | None:
    """The split that has to be divided: the only one, or with a `share` also train; None if there is none.

    A data set with a validation split is never divided, nor is one that has only a test split.
    """
    names = list(layout.splits)
    meanings = {split_names.meaning(name) for name in names}
    if split_names.VAL in meanings:
        return None
    if len(names) == 1 and meanings == {None}:
        return names[0]
    return split_names.match(split_names.TRAIN, names) if share is not None else None


def divide(whole: ParsedSplit, share: float) -> tuple[ParsedSplit, ParsedSplit]:
    """The images to train on, and those that are held out.

    Images that Roboflow made from one original (`name_jpg.rf.….jpg`) stay together.
    Raises ValueError unless both parts have an image.
    """
    places = {original: _place(original) for original in {_original(image) for image in whole.images}}
    if len(places) < 2:
        raise ValueError(
            f"{whole.source} has {len(whole.images)} images of {len(places)} originals, which cannot be divided into "
            "train and val; add images, or name a split: --split all is every image"
        )
    held = {original for original, place in places.items() if place < share}
    held = held or {min(places, key=lambda original: places[original])}
    if len(held) == len(places):
        held.remove(max(places, key=lambda original: places[original]))
    val = [image for image in whole.images if _original(image) in held]
    train = [image for image in whole.images if _original(image) not in held]
    return replace(whole, split=split_names.TRAIN, images=train), replace(whole, split=split_names.VAL, images=val)


def _original(image: AnnotatedImage) -> str:
    return PurePosixPath(image.name.replace("\\", "/")).name.partition(".rf.")[0].casefold()


def _place(original: str) -> float:
    """A number from 0 to 1, evenly distributed over names."""
    digest = hashlib.sha256(f"{_SALT} {original}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
