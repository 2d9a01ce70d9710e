"""COCO's format: `annotations/<split>.json` and the pictures that it names."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from faster_rcnn.data.dataset import Sample
from service import images
from service.problems import Problem


class Coco:
    """A split of a folder. Classes are numbered in the order of their category ids.

    Pictures are decoded by the service's own code, so that a detector is trained on what it will be served: EXIF
    orientation, transparency and 16-bit samples included.
    Raises FileNotFoundError if the annotations or a picture is missing, ValueError that names file and annotation if
    the format is another, a box has no area or lies outside, or names an unknown picture or class.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.split = split
        self.file = self._annotations()
        try:
            document = json.loads(self.file.read_text())
            self.images: list[dict[str, Any]] = document["images"]
            categories = sorted(document["categories"], key=lambda category: category["id"])
            annotations = document["annotations"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file}: not COCO's format: images, categories or annotations missing") from error
        self.labels = tuple(category["name"] for category in categories)
        places = {category["id"]: place for place, category in enumerate(categories)}
        by_id = {image["id"]: image for image in self.images}
        self._annotations_of: dict[int, list[dict[str, Any]]] = {identity: [] for identity in by_id}
        for annotation in annotations:
            self._check(annotation, by_id, places)
            self._annotations_of[annotation["image_id"]].append(
                annotation | {"label": places[annotation["category_id"]]}
            )

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:
        return self.images[index]["height"], self.images[index]["width"]

    def name(self, index: int) -> str:
        return str(self.images[index]["file_name"])

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        annotations = self._annotations_of[image["id"]]
        try:
            pixels = np.asarray(images.upright(self._picture(image["file_name"]).read_bytes()))
        except Problem as problem:
            raise ValueError(f"{self.file}: {image['file_name']} cannot be read: {problem.detail}") from problem
        if pixels.shape[:2] != self.size(index):
            height, width = pixels.shape[:2]
            raise ValueError(
                f"{self.file}: {image['file_name']} is {width}×{height} upright, "
                f"listed as {image['width']}×{image['height']}; correct the list"
            )
        corners = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in annotations)]
        return Sample(
            pixels,
            np.array(corners, np.float32).reshape(-1, 4),
            np.array([one["label"] for one in annotations], np.int64),
            crowd=np.array([bool(one.get("iscrowd")) for one in annotations], bool),
            areas=np.array([one.get("area", one["bbox"][2] * one["bbox"][3]) for one in annotations], np.float64),
        )

    def _check(self, annotation: dict[str, Any], by_id: dict[int, dict[str, Any]], places: dict[int, int]) -> None:
        where = f"{self.file}: annotation {annotation.get('id')}"
        picture, category = annotation.get("image_id"), annotation.get("category_id")
        if picture not in by_id or category not in places:
            raise ValueError(
                f"{where} names image {picture} and category {category}, one of which the file does not list; "
                "add it or remove the annotation"
            )
        x, y, width, height = annotation.get("bbox", (0, 0, 0, 0))
        image = by_id[picture]
        if not (width > 0 and height > 0 and x < image["width"] and y < image["height"] and x + width > 0 < y + height):
            raise ValueError(
                f"{where}: its box {[x, y, width, height]} in {image['file_name']} has no area inside the picture; "
                "remove it"
            )

    def _annotations(self) -> Path:
        folder = self.folder / "annotations"
        for name in (f"{self.split}.json", f"instances_{self.split}.json"):
            if (folder / name).is_file():
                return folder / name
        there = ", ".join(sorted(file.stem.removeprefix("instances_") for file in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(
            f"{folder / self.split}.json is not there; coco:DIR needs annotations/<split>.json (splits found: {there})"
        )

    def _picture(self, name: str) -> Path:
        places = (self.folder / name, self.folder / "images" / name, self.folder / self.split / name)
        for candidate in places:
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(f"{self.file} names {name}, which is none of {', '.join(map(str, places))}")
