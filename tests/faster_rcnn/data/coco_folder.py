"""Small folders in COCO's format for tests."""

import json
from pathlib import Path
from typing import Any

from PIL import Image


def write_image(file: Path, size: tuple[int, int] = (100, 60), colour: str = "red", kind: str = "JPEG") -> None:
    """Writes an image of one colour.  size: width and height;  kind: the format, whatever the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file, kind)


def image_entry(number: int, name: Any, **changes: Any) -> dict[str, Any]:
    """An element of `images`, for an image of 100×60 pixels."""
    return {"id": number, "file_name": name, "width": 100, "height": 60} | changes


def annotation_entry(number: int, image: int, box: tuple[float, ...] = (10, 20, 30, 20)) -> dict[str, Any]:
    """An element of `annotations`.  box: x, y, width, height."""
    return {"id": number, "image_id": image, "category_id": 1, "bbox": list(box), "area": max(1, box[2] * box[3])}


def write_coco_folder(
    folder: Path, images: list[Any], annotations: list[Any], split: str = "train", names: tuple[str, ...] = ("dog",)
) -> str:
    """Writes the annotations with one element per line and returns the value of --data for the folder.

    The first image is on line 2, and with one class the first annotation is on line 5 + len(images).
    """
    (folder / "annotations").mkdir(exist_ok=True)
    categories = [{"id": place, "name": name} for place, name in enumerate(names, 1)]
    lists = {"images": images, "categories": categories, "annotations": annotations}
    body = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(one) for one in values) + "]" for name, values in lists.items()
    )
    (folder / "annotations" / f"{split}.json").write_text("{" + body + "}")
    return f"coco:{folder}"
