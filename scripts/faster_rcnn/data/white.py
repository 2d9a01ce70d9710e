"""The value that means white in a data set whose images have more than 8 bits (`service.images.depth`)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import NamedTuple

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.folder import FolderDataset
from service.images.decode import ImageError, value_range
from service.images.depth import NEARLY_BLACK, WHITE, ValueRange
from service.images.tiff import is_tiff

HEAD = 32  # bytes of a file that tell whether it may have more than 8 bits
_PNG = b"\x89PNG\r\n\x1a\n"


class FoundWhite(NamedTuple):
    """The white of a data set.  text: what was found, for the user; "" if no image has more than 8 bits."""

    white: int
    text: str


def find_white(dataset: Dataset) -> FoundWhite:
    """White of a data set: the largest value in its images with more than 8 bits, rounded up to the next 2ⁿ - 1.

    WHITE if no image has more than 8 bits. Images that cannot be read do not count; other checks report them.
    """
    if not isinstance(dataset, FolderDataset):
        return FoundWhite(WHITE, "")
    paths = [dataset.path(index) for index in range(len(dataset))]
    with ThreadPoolExecutor(cpu_count() or 1) as threads:
        found = [one for one in threads.map(_range_of, paths) if one is not None]
    return found_white(found, len(paths), dataset.source, dataset.split)


def found_white(found: Sequence[ValueRange], images: int, source: str, split: str) -> FoundWhite:
    """White of a split of `images` images.  found: the ranges of those with more than 8 bits."""
    if not found:
        return FoundWhite(WHITE, "")
    white = white_of(found)
    largest = max(one.largest for one in found)
    text = (
        f"{source}, {split}: {len(found)} of {images} images have more than 8 bits per channel; "
        f"their largest value is {largest:,}, so {white:,} is taken for white "
        "(--white of train and export sets another value)"
    )
    dark = sum(one.largest < white / NEARLY_BLACK for one in found)
    if dark:
        text += f"; {dark} of them use less than 1/{NEARLY_BLACK} of that range and will be nearly black"
    return FoundWhite(white, text)


def against_white(found: Sequence[ValueRange], white: int, images: int, source: str, split: str) -> str:
    """How a split fits the white of the training split, for the user; "" if no image has more than 8 bits."""
    if not found:
        return ""
    largest = max(one.largest for one in found)
    text = f"{source}, {split}: {len(found)} of {images} images have more than 8 bits per channel; their largest value "
    text += f"is {largest:,}, and white is {white:,}, as in the training split"
    beyond = sum(one.largest > white for one in found)
    dark = sum(one.largest < white / NEARLY_BLACK for one in found)
    if beyond:
        text += f"; warning: {beyond} of them have values above white, which become white"
    if dark:
        text += f"; warning: {dark} of them use less than 1/{NEARLY_BLACK} of that range and will be nearly black"
    return text + (" (train --white sets another value)" if beyond or dark else "")


def white_found_by_check(dataset: FolderDataset) -> int | None:
    """White of a split whose images were decoded by the check; None if that decoded none."""
    if not dataset.facts:
        return None
    deep = [facts.values for facts in dataset.facts if facts.values]
    return found_white(deep, len(dataset.facts), dataset.source, dataset.split).white


def white_of(ranges: Sequence[ValueRange]) -> int:
    """The largest value, rounded up to the next 2ⁿ - 1, at least 255 and at most WHITE."""
    largest = max(one.largest for one in ranges)
    return min(WHITE, 2 ** max(8, largest.bit_length()) - 1)


def use_white(dataset: Dataset, white: int | None) -> None:
    """Lets the data set decode its images with `white`; None: with the white that is found in it, which is printed."""
    if isinstance(dataset, FolderDataset):
        if white is None:
            white, text = find_white(dataset)
            if text:
                print(text)
        dataset.white = white


def white_in(dataset: Dataset) -> int:
    """The white with which a data set decodes its images."""
    return dataset.white if isinstance(dataset, FolderDataset) else WHITE


def _range_of(path: Path) -> ValueRange | None:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            if not _may_be_deep(head):
                return None
            return value_range(head + file.read())
    except (OSError, ImageError):
        return None


def _may_be_deep(head: bytes) -> bool:
    """Whether the samples may have more than 8 bits: in a PNG of 16 bits, or any TIFF, which says so elsewhere."""
    return (head.startswith(_PNG) and head[24:25] == b"\x10") or is_tiff(head)
