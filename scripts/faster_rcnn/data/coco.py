"""COCO's format: `annotations/<split>.json` and the pictures that it names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faster_rcnn.data.dataset import Sample


class Coco:
    """A split of a folder. Classes are numbered in the order of their category ids; crowds are left out.

    Raises FileNotFoundError if the annotations or a picture is missing, ValueError if a box names an unknown picture
    or class.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.split = split
        self.file = self._annotations()
        document = json.loads(self.file.read_text())
        categories = sorted(document["categories"], key=lambda category: category["id"])
        self.labels = tuple(category["name"] for category in categories)
        self.images: list[dict[str, Any]] = document["images"]
        places = {category["id"]: place for place, category in enumerate(categories)}
        self._boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in self.images}
        self._labels: dict[int, list[int]] = {image["id"]: [] for image in self.images}
        for annotation in document["annotations"]:
            if annotation.get("iscrowd"):
                continue
            picture, category = annotation["image_id"], annotation["category_id"]
            if picture not in self._boxes or category not in places:
                raise ValueError(
                    f"{self.file}: annotation {annotation['id']} names image {picture} and category {category}, "
                    "one of which the file does not list; add it or remove the annotation"
                )
            x, y, width, height = annotation["bbox"]
            self._boxes[picture].append([x, y, x + width, y + height])
            self._labels[picture].append(places[category])

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:
        return self.images[index]["height"], self.images[index]["width"]

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        boxes = np.array(self._boxes[image["id"]], np.float32).reshape(-1, 4)
        with Image.open(self._picture(image["file_name"])) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape[:2] != self.size(index):
            height, width = pixels.shape[:2]
            raise ValueError(
                f"{self.file}: {image['file_name']} is {width}×{height}, listed as {image['width']}×{image['height']}; "
                "correct the list"
            )
        return Sample(pixels, boxes, np.array(self._labels[image["id"]], np.int64))

    def _annotations(self) -> Path:
        folder = self.folder / "annotations"
        for name in (f"{self.split}.json", f"instances_{self.split}.json"):
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"{folder / self.split}.json is not there; coco:DIR needs annotations/<split>.json")

    def _picture(self, name: str) -> Path:
        for candidate in (self.folder / name, self.folder / "images" / name, self.folder / self.split / name):
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(f"{self.file} names {name}, which is in neither {self.folder} nor its images folder")
