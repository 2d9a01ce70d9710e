"""Checks annotated images before a detector is trained on them: it reads every annotation and decodes every image.

faster-rcnn check --data voc:images
faster-rcnn check --data coco:images --split train --backbone vgg16 --anchor-scales 64 128 256

Names the file and line of each fault, then describes the data and how well the anchors of a detector cover it. Ends
with an error if training could not start.
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from faster_rcnn.commands.command_line import (
    Parser,
    above_zero,
    add_data,
    add_skip_bad_boxes,
    add_workers,
    check_sizes,
    data_source,
    positive,
    run_command,
)
from faster_rcnn.data.class_numbers import unused_classes
from faster_rcnn.data.coverage import anchor_coverage
from faster_rcnn.data.decode_check import FirstFiles, check_images, summary
from faster_rcnn.data.faults import Fault, stopping
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import open_folder, splits_of
from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training.options import configure


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn check`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("faster-rcnn check", lambda: check(arguments))


def build_parser() -> Parser:
    parser = Parser("check", "--data DATA [OPTION ...]", __doc__)
    add_data(parser)
    parser.add_argument("--split", help="split to check (default: every split in the data)")
    add_skip_bad_boxes(parser, ", as training with the same option does")
    add_workers(parser, os.cpu_count() or 1)
    detector = parser.add_argument_group("the detector whose anchors are compared with the objects")
    detector.add_argument(
        "--backbone",
        choices=sorted(BACKBONES),
        default="compact",
        help="backbone of the detector (default: %(default)s)",
    )
    detector.add_argument(
        "--min-size",
        type=positive,
        metavar="PIXELS",
        help="resize each image's shorter side to this length (default: that of the backbone)",
    )
    detector.add_argument(
        "--max-size",
        type=positive,
        metavar="PIXELS",
        help="upper limit of the longer side after resizing (default: that of the backbone)",
    )
    detector.add_argument(
        "--anchor-scales",
        type=above_zero,
        nargs="+",
        metavar="PIXELS",
        help="side lengths of the square anchors (default: those of the backbone)",
    )
    detector.add_argument(
        "--anchor-ratios",
        type=above_zero,
        nargs="+",
        metavar="RATIO",
        help="height divided by width (default: 0.5 1 2)",
    )
    detector.add_argument(
        "--crossing-anchors",
        choices=["drop", "keep"],
        help="whether training uses anchors that cross the image's border (default: that of the backbone)",
    )
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Prints the faults of the data and a description of it. Raises ValueError if training could not start."""
    data = data_source(arguments.data)
    if data == "shapes":
        print("generated images are drawn exactly as they are annotated; there is nothing to check")
        return
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    check_sizes(given)
    with torch.device("meta"):  # refuse a detector that cannot be built before reading the images
        strides = FasterRCNN(configure(given, arguments.backbone, ("object",))).backbone.strides
    splits = [arguments.split] if arguments.split else splits_of(data)
    if not splits:
        raise ValueError(f"--data {data}: no split found; {_where_splits_are(data)}")
    seen: FirstFiles = {}
    printed: set[str] = set()
    stop: list[Fault] = []
    for split in splits:
        print(f"== {split}")
        dataset, faults = check_split(data, split, arguments.skip_bad_boxes, arguments.workers, seen)
        new = [fault for fault in faults if str(fault) not in printed]
        printed.update(map(str, new))
        for fault in new:
            print(fault)
        stop += stopping(new, arguments.skip_bad_boxes)
        again = f" ({len(faults) - len(new)} of them printed above)" if len(new) < len(faults) else ""
        print(f"faults: {summary(faults)}{again}")
        if dataset is not None and len(dataset):
            print(describe(dataset))
            print(coverage(dataset, given, strides))
    if stop:
        skip = ", or train with --skip-bad-boxes" if all(fault.skippable for fault in stop) else ""
        raise ValueError(f"{data} has errors: {summary(stop)}; correct them{skip}")


def _where_splits_are(data: str) -> str:
    kind, _, folder = data.partition(":")
    file = {"coco": "annotations/train.json", "voc": "ImageSets/Main/train.txt"}[kind]
    return f"the training split is expected in {folder}/{file}"


def check_split(
    source: str, split: str, skip_bad_boxes: bool, workers: int, seen: FirstFiles
) -> tuple[FolderDataset | None, list[Fault]]:
    """A split and all its faults; None if its annotations cannot be read."""
    try:
        dataset = open_folder(source, split, skip_bad_boxes)
    except (ValueError, OSError) as error:
        what, _, remedy = str(error).rpartition("; ")
        return None, [Fault("unusable annotations", source, what or remedy, remedy, skippable=False)]
    return dataset, dataset.faults + unused_classes(dataset) + check_images(dataset, workers, seen)


def describe(dataset: FolderDataset) -> str:
    """The number of images, their sizes, and the number of objects of each class."""
    labels = [dataset.objects(index)[1] for index in range(len(dataset))]
    objects = np.bincount(np.concatenate(labels), minlength=len(dataset.labels))
    images = np.bincount(np.concatenate([np.unique(one) for one in labels]), minlength=len(dataset.labels))
    sizes = Counter(dataset.size(index) for index in range(len(dataset))).most_common()
    shown = ", ".join(f"{width}×{height} ({count})" for (height, width), count in sizes[:5])
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    empty = sum(len(one) == 0 for one in labels)
    width = max(map(len, dataset.labels))
    lines = [f"{len(dataset)} images, {empty} of them without objects; sizes: {shown}{more}"]
    lines.append(f"{'class':{width}}  objects  images")
    for name, of_objects, of_images in zip(dataset.labels, objects, images, strict=True):
        lines.append(f"{name:{width}} {of_objects:8} {of_images:9}")
    return "\n".join(lines)


def coverage(dataset: FolderDataset, given: dict[str, Any], strides: Sequence[int]) -> str:
    """The anchors of the detector, and how well they cover the objects."""
    config = configure(given, given["backbone"], dataset.labels)
    resize, scales = config.resize, " ".join(f"{scale:g}" for scale in config.anchor_scales)
    ratios = " ".join(f"{ratio:g}" for ratio in config.anchor_ratios)
    head = f"{config.backbone}: anchor scales {scales}, ratios {ratios}, images resized to {resize.min_size} pixels"
    return f"{head} (longest side {resize.max_size})\n{anchor_coverage(dataset, config, strides).report()}"
