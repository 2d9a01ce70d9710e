"""Writes a checked data set in COCO's format: `annotations/<split>.json` and `images/<split>/`.

Boxes, sizes and orientation are written as training uses them. Images are hard links where the file system allows it,
else copies; the originals stay as they are.
"""

import json
import os
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np

from faster_rcnn.data.folder import FolderDataset

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
LONGEST_NAME = 150  # characters; file systems take 255 bytes
UNUSUAL = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')  # not allowed on some file systems


class CocoWriter:
    """Writes splits to a folder beside the target, which `publish` renames; without it nothing is left behind."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if `folder` is not empty, OSError if it cannot be made."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"--write coco:{folder}: {folder} exists and is not empty; name a new folder")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.absolute().parent))
        self._part.chmod(0o755)  # mkdtemp's folders are for their owner alone
        (self._part / "annotations").mkdir()
        self._splits: list[str] = []
        self._renamed = self._copied = self._turned = 0

    def __enter__(self) -> "CocoWriter":
        return self

    def __exit__(self, _type: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        shutil.rmtree(self._part, ignore_errors=True)

    def add(self, dataset: FolderDataset) -> None:
        """Writes a split whose images have been decoded by `check_images`."""
        folder = self._part / "images" / dataset.split
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        taken: set[str] = set()
        for index in range(len(dataset)):
            old, number = dataset.name(index), index + 1
            name = file_name(old, dataset.facts[index].format, taken)
            self._renamed += name != old
            self._turned += dataset.facts[index].orientation != 1
            self._copied += not _link_or_copy(dataset.path(index), folder / name)
            height, width = dataset.size(index)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            annotations += _annotations(dataset, index, number, len(annotations))
        categories = [{"id": label, "name": name} for label, name in enumerate(dataset.labels, 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        (self._part / "annotations" / f"{dataset.split}.json").write_text(text, "utf-8")
        self._splits.append(f"{dataset.split} ({len(images)} images, {len(annotations)} objects)")

    def publish(self) -> str:
        """Moves what was written to its place.  Returns a line that says what is there."""
        if not self._splits:
            raise ValueError(f"no split has an image that can be used, so {self._folder} is not written; add images")
        self._part.rename(self._folder)
        copies = f"; {self._copied} images are copies, because they could not be linked" if self._copied else ""
        names = f"; {self._renamed} images have another name" if self._renamed else ""
        turned = f"; EXIF data turns {self._turned} images: add --exif-boxes upright" if self._turned else ""
        return f"wrote coco:{self._folder}: {', '.join(self._splits)}{names}{copies}{turned}"


def file_name(name: str, kind: str, taken: set[str]) -> str:
    """A name for an image that works on every file system, and differs from those in `taken`, to which it is added.

    name: the old one, perhaps with folders;  kind: the format of the image.
    """
    plain = UNUSUAL.sub("_", unicodedata.normalize("NFC", name).replace("\\", "/"))
    plain = "_".join(part for part in plain.split("/") if part not in ("", "."))
    stem, extension = PurePosixPath(plain or "image").stem, PurePosixPath(plain).suffix
    if extension.lower() not in EXTENSIONS.get(kind, ()):
        known = any(extension.lower() in group for group in EXTENSIONS.values())
        stem, extension = stem if known else plain, EXTENSIONS.get(kind, (f".{kind.lower()}",))[0]
    stem = stem[:LONGEST_NAME].strip(" .") or "image"
    result, number = f"{stem}{extension}", 1
    while result.casefold() in taken:
        number += 1
        result = f"{stem}-{number}{extension}"
    taken.add(result.casefold())
    return result


def _annotations(dataset: FolderDataset, index: int, image: int, before: int) -> list[dict[str, Any]]:
    """The objects of one image.  image: its id;  before: the number of annotations written before."""
    objects = dataset.all_objects(index)
    # In double precision the difference of two coordinates is exact enough that x + width gives back the same float32.
    boxes = objects.boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    rows = zip(boxes.tolist(), sides.tolist(), objects.labels.tolist(), objects.areas.tolist(), objects.crowd.tolist(),
               objects.difficult.tolist(), strict=True)  # fmt: skip
    return [
        {
            "id": before + number,
            "image_id": image,
            "category_id": label + 1,
            "bbox": [*box[:2], *side],
            "area": area,
            "iscrowd": int(crowd),
        }
        | ({"difficult": 1} if difficult else {})
        for number, (box, side, label, area, crowd, difficult) in enumerate(rows, 1)
    ]


def _link_or_copy(source: Path, target: Path) -> bool:
    """Whether `target` is a hard link to `source`, rather than a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, one without links, or no permission
        shutil.copyfile(source, target)
        return False
    return True
