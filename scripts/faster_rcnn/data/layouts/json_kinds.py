"""Tells the JSON files of annotation tools apart by their beginning, because they may be gigabytes long."""

import re
from pathlib import Path

COCO, LABEL_STUDIO = "coco", "label studio"

# What messages say about formats that are not read, by their kind or by their extension.
FOREIGN = {
    "labelme": "labelme's JSON; convert it to COCO (labelme2coco) or VOC",
    "via": "VIA's project; export it from VIA as COCO",
    "createml": "CreateML's JSON; export it again as COCO",
    "datumaro": "Datumaro's JSON; export it again as COCO",
    "without boxes": "a JSON file of COCO without boxes (captions, image_info or panoptic); add instances_<split>.json",
    ".jsonl": "a file of JSON lines; export it again as COCO",
    ".csv": "a table; export it again as COCO, VOC or YOLO",
    ".tfrecord": "a TFRecord; export it again as COCO, VOC or YOLO",
    ".record": "a TFRecord; export it again as COCO, VOC or YOLO",
}
_BEGINNING = 100_000  # bytes
_NOT_BOXES = re.compile(r"(captions?|image_info|person_keypoints|keypoints|stuff|panoptic)[_-].+")


def describes_no_boxes(stem: str) -> bool:
    """Whether a file beside COCO's own `instances_….json` holds something else: captions, keypoints, image_info …"""
    return _NOT_BOXES.fullmatch(stem.lower()) is not None


def kind_of(file: Path) -> str | None:
    """The tool whose format a JSON file has; None if it is none of these, or cannot be read."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_BEGINNING).decode("utf-8-sig", "ignore").lstrip()
    except OSError:
        return None
    if text.startswith("["):
        return _kind_of_list(text)
    if not text.startswith("{"):
        return None
    if _has(text, "shapes") and _has(text, "imagePath"):
        return "labelme"
    if _has(text, "_via_img_metadata") or (_has(text, "regions") and _has(text, "filename")):
        return "via"
    if _has(text, "dm_format_version") or (_has(text, "items") and _has(text, "categories")):
        return "datumaro"
    if any(_has(text, name) for name in ("images", "annotations")) or (
        len(text) > _BEGINNING / 2 and any(_has(text, name) for name in ("categories", "licenses"))
    ):
        return "without boxes" if describes_no_boxes(file.stem) else COCO
    return None


def _kind_of_list(text: str) -> str | None:
    if _has(text, "coordinates") and _has(text, "annotations") and _has(text, "image"):
        return "createml"
    of_a_task = any(_has(text, name) for name in ("annotations", "completions", "predictions")) and _has(text, "data")
    of_a_short_task = any(_has(text, name) for name in ("annotation_id", "annotator", "original_width", "lead_time"))
    return LABEL_STUDIO if of_a_task or of_a_short_task else None


def _has(text: str, name: str) -> bool:
    return re.search(rf'"{name}"\s*:', text) is not None
