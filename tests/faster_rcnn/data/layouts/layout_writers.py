"""Writes one small data set in each layout, as the public tools write it.

Where the layouts are documented: COCO cocodataset.org/#format-data; Roboflow rfdetr.roboflow.com/latest/learn/train/
dataset-formats and the `README.roboflow.txt` of its exports; Ultralytics docs.ultralytics.com/datasets/detect; CVAT
docs.cvat.ai/docs/dataset_management/formats; Label Studio labelstud.io/guide/export; LabelImg github.com/HumanSignal/
labelImg; Pascal VOC the development kit of 2007.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Object:
    """name: its class;  x1, y1, x2, y2: whole pixels from 0, in the notation that this project uses."""

    name: str
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Photo:
    name: str
    width: int
    height: int
    objects: tuple[Object, ...]


Splits = dict[str, list[Photo]]  # train, val, test


def classes_of(splits: Splits) -> list[str]:
    return sorted({one.name for photos in splits.values() for photo in photos for one in photo.objects})


def write_photo(file: Path, photo: Photo) -> None:
    """An image whose colour follows from its name, so that no two are equal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(zlib.crc32(photo.name.encode()).to_bytes(4)[:3])
    image_format = "PNG" if file.suffix.lower() == ".png" else "JPEG"
    Image.new("RGB", (photo.width, photo.height), colour).save(file, image_format)


def text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")


def coco(photos: list[Photo], classes: list[str], prefix: str = "", first_class: int = 1) -> dict[str, Any]:
    """COCO's document.  prefix: what the tool writes before each file name."""
    annotations = [
        {
            "id": 100 * place + number,
            "image_id": place,
            "category_id": classes.index(one.name) + first_class,
            "bbox": [one.x1, one.y1, one.x2 - one.x1, one.y2 - one.y1],
            "area": (one.x2 - one.x1) * (one.y2 - one.y1),
            "segmentation": [],
            "iscrowd": 0,
        }
        for place, photo in enumerate(photos)
        for number, one in enumerate(photo.objects)
    ]
    return {
        "info": {"description": ""},
        "licenses": [],
        "images": [
            {"id": place, "file_name": prefix + photo.name, "width": photo.width, "height": photo.height}
            for place, photo in enumerate(photos)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, first_class)],
        "annotations": annotations,
    }


def voc(photo: Photo, folder: str = "", path: str = "") -> str:
    """VOC's document, with pixels counted from 1."""
    objects = "".join(
        f"\n\t<object>\n\t\t<name>{one.name}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n\t\t"
        f"<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{one.x1 + 1}</xmin>\n\t\t\t<xmax>{one.x2}</xmax>\n\t\t\t"
        f"<ymin>{one.y1 + 1}</ymin>\n\t\t\t<ymax>{one.y2}</ymax>\n\t\t</bndbox>\n\t</object>"
        for one in photo.objects
    )
    return (
        f"<annotation>\n\t<folder>{folder}</folder>\n\t<filename>{photo.name}</filename>\n\t<path>{path or photo.name}"
        f"</path>\n\t<size>\n\t\t<width>{photo.width}</width>\n\t\t<height>{photo.height}</height>\n\t\t<depth>3</depth>"
        f"\n\t</size>\n\t<segmented>0</segmented>{objects}\n</annotation>\n"
    )


def yolo(photo: Photo, classes: list[str]) -> str:
    """YOLO's label file, with 6 decimals as LabelImg and CVAT write them."""
    lines = [
        f"{classes.index(one.name)} {(one.x1 + one.x2) / 2 / photo.width:.6f} "
        f"{(one.y1 + one.y2) / 2 / photo.height:.6f} {(one.x2 - one.x1) / photo.width:.6f} "
        f"{(one.y2 - one.y1) / photo.height:.6f}\n"
        for one in photo.objects
    ]
    return "".join(lines)


ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}


def roboflow_coco(root: Path, splits: Splits) -> Path:
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / ROBOFLOW[split] / photo.name, photo)
        document = coco(photos, classes_of(splits), first_class=0)
        text(root / ROBOFLOW[split] / "_annotations.coco.json", json.dumps(document))
    text(root / "README.roboflow.txt", "exported via roboflow.com")
    return root


def roboflow_voc(root: Path, splits: Splits) -> Path:
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / ROBOFLOW[split] / photo.name, photo)
            text((root / ROBOFLOW[split] / photo.name).with_suffix(".xml"), voc(photo))
    return root


def roboflow_yolo(root: Path, splits: Splits) -> Path:
    classes = classes_of(splits)
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / ROBOFLOW[split] / "images" / photo.name, photo)
            file = (root / ROBOFLOW[split] / "labels" / photo.name).with_suffix(".txt")
            text(file, yolo(photo, classes).rstrip("\n"))
    places = "".join(f"{split}: ../{ROBOFLOW[split]}/images\n" for split in splits)
    names = ", ".join(f"'{name}'" for name in classes)
    text(root / "data.yaml", f"{places}\nnc: {len(classes)}\nnames: [{names}]\n\nroboflow:\n  version: 3\n")
    return root


def ultralytics(root: Path, splits: Splits) -> Path:
    """Images without objects have no label file."""
    classes = classes_of(splits)
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / "images" / split / photo.name, photo)
            if photo.objects:
                text((root / "labels" / split / photo.name).with_suffix(".txt"), yolo(photo, classes))
    places = "".join(f"{split}: images/{split} # some images\n" for split in splits)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(classes))
    text(root / "coco8.yaml", f"path: ../datasets/coco8 # dataset root dir\n{places}\n# Classes\nnames:\n{names}")
    return root


def ultralytics_segments(root: Path, splits: Splits) -> Path:
    """Polygons instead of boxes, and lists of images."""
    classes = classes_of(splits)
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / "images" / split / photo.name, photo)
            lines = []
            for one in photo.objects:
                middle = (one.x1 + one.x2) / 2
                corners = [(one.x1, one.y1), (middle, one.y1), (one.x2, one.y2), (one.x1, one.y2)]
                shares = " ".join(f"{x / photo.width:.8f} {y / photo.height:.8f}" for x, y in corners)
                lines.append(f"{classes.index(one.name)} {shares}\n")
            text((root / "labels" / split / photo.name).with_suffix(".txt"), "".join(lines))
        text(root / f"{split}.txt", "".join(f"./images/{split}/{photo.name}\n" for photo in photos))
    places = "".join(f"{split}: [{split}.txt]\n" for split in splits)
    text(root / "data.yaml", f"path: .\n{places}names: {json.dumps(classes)}\n")
    return root


def development_kit(root: Path, splits: Splits) -> Path:
    folder = root / "VOCdevkit" / "VOC2007"
    for split, photos in splits.items():
        for photo in photos:
            write_photo(folder / "JPEGImages" / photo.name, photo)
            text((folder / "Annotations" / photo.name).with_suffix(".xml"), voc(photo, "VOC2007"))
        text(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{Path(one.name).stem}\n" for one in photos))
    return root


def coco_as_downloaded(root: Path, splits: Splits) -> Path:
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / f"{split}2017" / photo.name, photo)
        document = coco(photos, classes_of(splits))
        text(root / "annotations" / f"instances_{split}2017.json", json.dumps(document))
        captions = {"images": document["images"], "annotations": [{"id": 1, "image_id": 0, "caption": "a dog"}]}
        for kind in ("captions", "person_keypoints"):
            text(root / "annotations" / f"{kind}_{split}2017.json", json.dumps(captions))
    text(root / "annotations" / "image_info_test-dev2017.json", json.dumps({"images": [], "categories": []}))
    return root


def cvat_coco(root: Path, splits: Splits) -> Path:
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / "images" / split / photo.name, photo)
        text(root / "annotations" / f"instances_{split}.json", json.dumps(coco(photos, classes_of(splits))))
    return root


def cvat_voc(root: Path, splits: Splits) -> Path:
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / "JPEGImages" / photo.name, photo)
            text((root / "Annotations" / photo.name).with_suffix(".xml"), voc(photo))
        lists = root / "ImageSets" / "Main"
        text(lists / f"{split}.txt", "".join(f"{Path(one.name).stem}\n" for one in photos))
        for name in classes_of(splits):
            flags = [(Path(one.name).stem, 1 if name in {o.name for o in one.objects} else -1) for one in photos]
            text(lists / f"{name}_{split}.txt", "".join(f"{stem}  {flag}\n" for stem, flag in flags))
    text(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\n")
    return root


def cvat_yolo(root: Path, splits: Splits) -> Path:
    """YOLO 1.1, whose only subsets are train and valid; the lists begin with `data/`, as CVAT writes them."""
    classes = classes_of(splits)
    kept = {split: photos for split, photos in splits.items() if split != "test"}
    kept["train"] = [*kept["train"], *splits.get("test", [])]
    settings = [f"classes = {len(classes)}"]
    for split, photos in kept.items():
        folder = root / f"obj_{ROBOFLOW[split]}_data"
        for photo in photos:
            write_photo(folder / photo.name, photo)
            text((folder / photo.name).with_suffix(".txt"), yolo(photo, classes))
        lines = "".join(f"data/obj_{ROBOFLOW[split]}_data/{photo.name}\n" for photo in photos)
        text(root / f"{ROBOFLOW[split]}.txt", lines)
        settings.append(f"{ROBOFLOW[split]} = data/{ROBOFLOW[split]}.txt")
    text(root / "obj.data", "\n".join([*settings, "names = data/obj.names", "backup = backup/", ""]))
    text(root / "obj.names", "".join(f"{name}\n" for name in classes))
    return root


def cvat_ultralytics(root: Path, splits: Splits) -> Path:
    classes = classes_of(splits)
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / "images" / split / photo.name, photo)
            text((root / "labels" / split / photo.name).with_suffix(".txt"), yolo(photo, classes))
        text(root / f"{split}.txt", "".join(f"data/images/{split}/{photo.name}\n" for photo in photos))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(classes))
    places = "".join(f"{split}: {split}.txt\n" for split in splits)
    text(root / "data.yaml", f"names:\n{names}path: .\n{places}")
    return root


def cvat_images(root: Path, splits: Splits) -> Path:
    images = []
    for split, photos in splits.items():
        for photo in photos:
            write_photo(root / "images" / split / photo.name, photo)
            boxes = "".join(
                f'\n    <box label="{one.name}" source="manual" occluded="0" xtl="{one.x1:.2f}" ytl="{one.y1:.2f}" '
                f'xbr="{one.x2:.2f}" ybr="{one.y2:.2f}" z_order="0">\n    </box>'
                for one in photo.objects
            )
            images.append(
                f'\n  <image id="{len(images)}" name="{photo.name}" subset="{split}" task_id="2" width="{photo.width}" '
                f'height="{photo.height}">{boxes}\n  </image>'
            )
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in classes_of(splits))
    head = f"<version>1.1</version>\n  <meta><project><labels>{labels}</labels></project></meta>"
    text(
        root / "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  {head}{"".join(images)}\n</annotations>\n',
    )
    return root


# Layouts without splits: the photos of all splits in one place.


def together(splits: Splits) -> list[Photo]:
    return [photo for photos in splits.values() for photo in photos]


def flat_voc(root: Path, splits: Splits) -> Path:
    for photo in together(splits):
        write_photo(root / photo.name, photo)
        text(
            (root / photo.name).with_suffix(".xml"), voc(photo, root.name, f"C:\\Users\\me\\{root.name}\\{photo.name}")
        )
    return root


def labelimg_yolo(root: Path, splits: Splits) -> Path:
    classes = classes_of(splits)
    for photo in together(splits):
        write_photo(root / photo.name, photo)
        text((root / photo.name).with_suffix(".txt"), yolo(photo, classes))
    text(root / "classes.txt", "".join(f"{name}\n" for name in classes))
    return root


def one_coco_file(root: Path, splits: Splits) -> Path:
    for photo in together(splits):
        write_photo(root / "photos" / photo.name, photo)
    text(root / "labels_my-project.json", json.dumps(coco(together(splits), classes_of(splits))))
    return root


def upload_name(photo: Photo) -> str:
    """Label Studio puts 8 hexadecimal digits before the name of an uploaded file."""
    return f"{len(photo.name):08x}-{photo.name}"


def label_studio_coco(root: Path, splits: Splits) -> Path:
    for photo in together(splits):
        write_photo(root / "images" / upload_name(photo), photo)
    document = coco(together(splits), classes_of(splits), first_class=0)
    for image in document["images"]:
        image["file_name"] = f"images/{len(image['file_name']):08x}-{image['file_name']}"
    text(root / "result.json", json.dumps(document))
    return root


def label_studio_yolo(root: Path, splits: Splits) -> Path:
    classes = classes_of(splits)
    for photo in together(splits):
        write_photo(root / "images" / upload_name(photo), photo)
        text((root / "labels" / upload_name(photo)).with_suffix(".txt"), yolo(photo, classes))
    text(root / "classes.txt", "\n".join(classes))
    notes = {
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "info": {"year": 2026},
    }
    text(root / "notes.json", json.dumps(notes))
    return root


def label_studio_voc(root: Path, splits: Splits) -> Path:
    for photo in together(splits):
        name = upload_name(photo)
        write_photo(root / "images" / name, photo)
        renamed = Photo(name, photo.width, photo.height, photo.objects)
        text((root / "Annotations" / name).with_suffix(".xml"), voc(renamed, "images"))
    return root


def shape(photo: Photo, one: Object) -> dict[str, Any]:
    """Label Studio's rectangle: percentages of the image's sides."""
    return {
        "x": 100 * one.x1 / photo.width,
        "y": 100 * one.y1 / photo.height,
        "width": 100 * (one.x2 - one.x1) / photo.width,
        "height": 100 * (one.y2 - one.y1) / photo.height,
        "rotation": 0,
        "rectanglelabels": [one.name],
    }


def label_studio_json(root: Path, splits: Splits) -> Path:
    """Tasks, and the images as they were before they were uploaded."""
    tasks = []
    for number, photo in enumerate(together(splits), 1):
        write_photo(root / "photos" / photo.name, photo)
        sides = {"original_width": photo.width, "original_height": photo.height, "image_rotation": 0}
        results = [
            {**sides, "value": shape(photo, one), "id": f"r{place}", "from_name": "label", "to_name": "image",
             "type": "rectanglelabels", "origin": "manual"}
            for place, one in enumerate(photo.objects)
        ]  # fmt: skip
        tasks.append(
            {
                "id": number,
                "annotations": [{"id": number, "result": results, "was_cancelled": False, "ground_truth": False}],
                "file_upload": upload_name(photo),
                "data": {"image": f"/data/upload/1/{upload_name(photo)}"},
                "predictions": [],
            }
        )
    text(root / "project-1-at-2026-11-28-21-00-abcdef12.json", json.dumps(tasks))
    return root


def label_studio_min(root: Path, splits: Splits) -> Path:
    tasks = []
    for number, photo in enumerate(together(splits), 1):
        write_photo(root / photo.name, photo)
        sides = {"original_width": photo.width, "original_height": photo.height}
        shapes = {"label": [shape(photo, one) | sides for one in photo.objects]} if photo.objects else {}
        task = {"image": f"/data/upload/1/{upload_name(photo)}", "id": number, **shapes, "annotator": 1}
        tasks.append(task | {"annotation_id": number, "created_at": "2026-11-28T21:00:00Z", "lead_time": 4.2})
    text(root / "project-1-at-2026-11-28-21-00-abcdef12.json", json.dumps(tasks))
    return root


Writer = Callable[[Path, Splits], Path]

WITH_SPLITS: tuple[Writer, ...] = (
    roboflow_coco, roboflow_voc, roboflow_yolo, ultralytics, ultralytics_segments, development_kit, coco_as_downloaded,
    cvat_coco, cvat_voc, cvat_yolo, cvat_ultralytics, cvat_images,
)  # fmt: skip
WITHOUT_SPLITS: tuple[Writer, ...] = (
    flat_voc, labelimg_yolo, one_coco_file, label_studio_coco, label_studio_yolo, label_studio_voc, label_studio_json,
    label_studio_min,
)  # fmt: skip
