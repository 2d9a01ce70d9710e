"""Checks annotated images before anything is trained on them: every annotation is read, every image decoded.

scripts/check_data.py --data voc:images
scripts/check_data.py --data coco:images --split train --backbone vgg16 --anchor-scales 64 128 256

Names file and line of each fault, then tells what there is and how well the anchors of a detector cover it. Ends with
an error if training could not start.
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from faster_rcnn.commands.command_line import fail, positive, run_command
from faster_rcnn.data.coverage import anchor_coverage
from faster_rcnn.data.decode_check import FirstFiles, check_images, summary
from faster_rcnn.data.faults import Fault, stopping
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_folder, splits_of
from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training.recipe import configure


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="coco:DIR|voc:DIR")
    parser.add_argument("--split", help="default: all that are found")
    parser.add_argument("--skip-bad-boxes", action="store_true", help="count as training with this option would")
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="compact", help="default: %(default)s")
    parser.add_argument("--anchor-scales", type=float, nargs="+", metavar="PIXELS", help="sides of the square anchors")
    parser.add_argument("--anchor-ratios", type=float, nargs="+", metavar="RATIO", help="heights over widths")
    parser.add_argument("--crossing-anchors", choices=["drop", "keep"], help="those that cross the image's border")
    parser.add_argument("--min-size", type=positive, metavar="PIXELS", help="what the shorter side is resized to")
    parser.add_argument("--max-size", type=positive, metavar="PIXELS", help="what the longer then does not exceed")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="threads that decode images")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.data == "shapes":
        print("shapes are drawn exactly as they are annotated; there is nothing to check")
        return
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    with torch.device("meta"):  # what cannot be built shows before all images are read
        strides = FasterRCNN(configure(given, arguments.backbone, ("object",))).backbone.strides
    splits = [arguments.split] if arguments.split else splits_of(arguments.data)
    if not splits:
        raise ValueError(f"--data {arguments.data}: no splits found; give a folder of annotations, see README.md")
    seen: FirstFiles = {}
    told: set[str] = set()
    stop: list[Fault] = []
    for split in splits:
        print(f"== {split}")
        dataset, faults = check_split(arguments.data, split, arguments.skip_bad_boxes, arguments.workers, seen)
        new = [fault for fault in faults if str(fault) not in told]
        told.update(map(str, new))
        for fault in new:
            print(fault)
        stop += stopping(new, arguments.skip_bad_boxes)
        again = f" ({len(faults) - len(new)} of them told above)" if len(new) < len(faults) else ""
        print(f"faults: {summary(faults)}{again}")
        if dataset is not None and len(dataset):
            print(describe(dataset))
            print(coverage(dataset, given, strides))
    if stop:
        skip = ", or train with --skip-bad-boxes" if all(fault.skippable for fault in stop) else ""
        fail(f"{arguments.data} has errors: {summary(stop)}; correct them{skip}")


def check_split(
    source: str, split: str, skip_bad_boxes: bool, workers: int, seen: FirstFiles
) -> tuple[FolderDataset | None, list[Fault]]:
    """A split and all its faults; None if its annotations are no such thing at all."""
    try:
        dataset = open_folder(source, split, skip_bad_boxes)
    except (ValueError, OSError) as error:
        what, _, remedy = str(error).rpartition("; ")
        return None, [Fault("unusable annotations", source, what or remedy, remedy, skippable=False)]
    return dataset, dataset.faults + check_images(dataset, workers, seen)


def describe(dataset: FolderDataset) -> str:
    """Images, their sizes, and the objects of each class."""
    labels = [dataset.objects(index)[1] for index in range(len(dataset))]
    objects = np.bincount(np.concatenate(labels), minlength=len(dataset.labels))
    images = np.bincount(np.concatenate([np.unique(one) for one in labels]), minlength=len(dataset.labels))
    sizes = Counter(dataset.size(index) for index in range(len(dataset))).most_common()
    shown = ", ".join(f"{width}×{height} ({count})" for (height, width), count in sizes[:5])
    more = f" and {len(sizes) - 5} sizes more" if len(sizes) > 5 else ""
    empty = sum(len(one) == 0 for one in labels)
    width = max(map(len, dataset.labels))
    lines = [f"{len(dataset)} images, {empty} of them without objects; sizes: {shown}{more}"]
    lines.append(f"{'class':{width}}  objects  images")
    for name, of_objects, of_images in zip(dataset.labels, objects, images, strict=True):
        lines.append(f"{name:{width}} {of_objects:8} {of_images:9}")
    return "\n".join(lines)


def coverage(dataset: FolderDataset, given: dict[str, Any], strides: Sequence[int]) -> str:
    config = configure(given, given["backbone"], dataset.labels)
    resize, scales = config.resize, " ".join(f"{scale:g}" for scale in config.anchor_scales)
    ratios = " ".join(f"{ratio:g}" for ratio in config.anchor_ratios)
    head = f"{config.backbone}: anchor scales {scales}, ratios {ratios}, images resized to {resize.min_size} pixels"
    return f"{head} (longest side {resize.max_size})\n{anchor_coverage(dataset, config, strides).report()}"


if __name__ == "__main__":
    run_command(main)
