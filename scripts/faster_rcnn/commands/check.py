"""Checks annotated images before a detector is trained on them: it reads every annotation and decodes every image.

faster-rcnn check --data voc:images
faster-rcnn check --data coco:images --split train --backbone vgg16 --anchor-scales 64 128 256
faster-rcnn check --data voc:images --write coco:clean

Names the file and line of each fault, then describes the data and how well the anchors of a detector cover it. Ends
with an error if training could not start. A check that is interrupted continues where it stopped: what decoding found
is remembered in ~/.cache/faster-rcnn (FASTER_RCNN_CACHE names another folder).
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faster_rcnn.commands.argument_types import above_zero, path, pixels
from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_exif_boxes,
    add_skip_bad_boxes,
    add_val_share,
    add_workers,
    check_sizes,
    data_source,
    run_command,
)
from faster_rcnn.data.class_numbers import unknown_classes, unused_classes
from faster_rcnn.data.coco_writer import CocoWriter
from faster_rcnn.data.coverage import anchor_coverage
from faster_rcnn.data.decode_check import FirstFiles, check_images, summary
from faster_rcnn.data.description import describe, objects_per_image
from faster_rcnn.data.faults import Fault, stopping
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.layouts.split_names import TRAIN
from faster_rcnn.data.sources import open_folder, splits_of
from faster_rcnn.data.white import white_found_by_check
from faster_rcnn.detector.anchor_shapes import STRIDES, scales_of_maps
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.limits import too_many_objects
from faster_rcnn.training.options import configure


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn check`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    interrupted = "interrupted; the same command continues"
    return run_command("faster-rcnn check", lambda: check(arguments), interrupted=interrupted)


def build_parser() -> Parser:
    parser = Parser("check", "--data DATA [OPTION ...]", __doc__)
    add_data(parser)
    parser.add_argument("--split", help="split to check (default: every split in the data)")
    add_val_share(parser)
    parser.add_argument(
        "--write",
        type=_coco_folder,
        metavar="coco:DIR",
        help="write the data without its faults to a new folder: sizes, boxes and names are corrected, and what "
        "--skip-bad-boxes leaves out is missing; images are linked where possible, else copied",
    )
    parser.add_argument("--no-decode", action="store_true", help="read the annotations only")
    add_skip_bad_boxes(parser, ", as training with the same option does")
    add_exif_boxes(parser)
    add_workers(parser, os.cpu_count() or 1)
    detector = parser.add_argument_group("the detector whose anchors are compared with the objects")
    detector.add_argument("--backbone", metavar="NAME", help="backbone of the detector (default: compact)")
    detector.add_argument(
        "--min-size",
        type=pixels,
        metavar="PIXELS",
        help="resize each image's shorter side to this length (default: that of the backbone)",
    )
    detector.add_argument(
        "--max-size",
        type=pixels,
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


def _coco_folder(text: str) -> Path:
    kind, _, folder = text.partition(":")
    if kind != "coco" or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not coco:DIR")
    return path(folder)


def check(arguments: argparse.Namespace) -> None:
    """Prints the faults of the data and a description of it. Raises ValueError if training could not start."""
    data = data_source(arguments.data)
    if data == "shapes":
        print("generated images are drawn exactly as they are annotated; there is nothing to check")
        return
    if arguments.write and arguments.no_decode:
        raise ValueError("--write writes only images that can be decoded; leave out --no-decode")
    detector = _detector_options(arguments)
    _configured(detector, ("object",))  # refuse a detector that cannot be built before reading the data
    splits = [arguments.split] if arguments.split else splits_of(data, arguments.val_share)
    skip = arguments.skip_bad_boxes or arguments.write is not None
    if arguments.write is None:
        stop = _check_splits(data, splits, arguments, detector, None)
    else:
        with CocoWriter(arguments.write) as writer:
            stop = _check_splits(data, splits, arguments, detector, writer)
            if not stop:
                print(writer.publish())
    if stop:
        can_skip = ", or train with --skip-bad-boxes" if all(fault.skippable for fault in stop) and not skip else ""
        raise ValueError(f"{data} has errors: {summary(stop)}; correct them{can_skip}")


def _check_splits(
    data: str, splits: Sequence[str], arguments: argparse.Namespace, detector: dict[str, Any], writer: CocoWriter | None
) -> list[Fault]:
    """Checks the splits one after the other, so that only one is in memory. Returns what prevents training."""
    skip = arguments.skip_bad_boxes or writer is not None
    seen: FirstFiles = {}
    printed: set[str] = set()
    stop: list[Fault] = []
    labels: tuple[str, ...] | None = None  # of the training split
    white: int | None = None  # of the training split
    for split in sorted(splits, key=lambda name: name != TRAIN):
        print(f"== {split}")
        dataset, faults = check_split(data, split, skip, arguments, seen)
        if dataset is not None and labels is not None:
            faults += unknown_classes(dataset, labels)
        if dataset is not None and split == TRAIN:
            labels = dataset.labels
        new = {str(fault): fault for fault in faults if str(fault) not in printed}
        printed.update(new)
        stop += stopping(list(new.values()), skip)
        for line in new:
            print(line)
        again = f" ({len(faults) - len(new)} of them printed above)" if len(new) < len(faults) else ""
        print(f"faults: {summary(faults)}{again}")
        if dataset is not None and len(dataset):
            print(describe(dataset, white))
            white = white_found_by_check(dataset) if split == TRAIN else white
            print(about_detector(dataset, detector))
            if writer is not None:
                writer.add(dataset)
    if arguments.no_decode:
        print("no image was decoded, because of --no-decode: broken and repeated images are not listed")
    return stop


def check_split(
    source: str, split: str, skip_bad_boxes: bool, arguments: argparse.Namespace, seen: FirstFiles
) -> tuple[FolderDataset | None, list[Fault]]:
    """A split and all its faults; None if its annotations cannot be read."""
    try:
        dataset = open_folder(source, split, skip_bad_boxes, arguments.val_share, arguments.exif_boxes)
    except (ValueError, OSError) as error:
        what, _, remedy = str(error).rpartition("; ")
        return None, [Fault("unusable annotations", source, what or remedy, remedy, skippable=False)]
    found = [] if arguments.no_decode else check_images(dataset, arguments.workers, seen)
    return dataset, dataset.faults + unused_classes(dataset) + found


def _detector_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the detector that the user named.  Raises ValueError if they contradict each other."""
    names = ("backbone", "min_size", "max_size", "anchor_scales", "anchor_ratios", "crossing_anchors")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    check_sizes(given)
    return given


def _configured(given: dict[str, Any], labels: tuple[str, ...]) -> DetectorConfig:
    """The configuration of the detector that the user named.  Raises ValueError if it cannot be built."""
    config = configure(given, given.get("backbone", "compact"), labels)
    scales_of_maps(config, len(STRIDES[config.backbone]))
    return config


def about_detector(dataset: FolderDataset, given: dict[str, Any]) -> str:
    """The anchors of the detector, how well they cover the objects, and which images have too many objects."""
    config = _configured(given, dataset.labels)
    resize, scales = config.resize, " ".join(f"{scale:g}" for scale in config.anchor_scales)
    ratios = " ".join(f"{ratio:g}" for ratio in config.anchor_ratios)
    head = f"{config.backbone}: anchor scales {scales}, ratios {ratios}, images resized to {resize.min_size} pixels"
    coverage = anchor_coverage(dataset, config, STRIDES[config.backbone])
    lines = [f"{head} (longest side {resize.max_size})", coverage.report()]
    limit = min(config.detections.detections, config.proposals.after_nms)
    if warning := too_many_objects(objects_per_image(dataset), limit):
        lines.append(f"warning: {warning}")
    return "\n".join(lines)
