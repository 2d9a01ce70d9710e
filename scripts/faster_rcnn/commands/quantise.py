"""Publishes an int8 copy of a published model, for CPUs: it runs in half the time, and its file is a third as large.

faster-rcnn quantise model_store/shapes/1 --data shapes

The ranges of the features are measured on the first training images, and the AP of both versions on the test split.
If AP falls by more than one point, nothing is published. The served score threshold is chosen again on the validation
split, unless it was given.
"""

import argparse
import json
from collections.abc import Sequence

from faster_rcnn.commands.argument_types import path, version_number
from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_exif_boxes,
    add_limit_images,
    add_score_threshold,
    add_seed,
    add_skip_bad_boxes,
    add_val_share,
    check_writable,
    data_source,
    run_command,
)
from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.sources import open_dataset, splits_of
from faster_rcnn.data.white import use_white
from faster_rcnn.graph.publish import next_version
from faster_rcnn.graph.publish_int8 import publish_int8
from faster_rcnn.graph.served_threshold import Validation
from service.images.depth import WHITE


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn quantise`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("faster-rcnn quantise", lambda: quantise(arguments), arguments.model.parent)


def build_parser() -> Parser:
    parser = Parser("quantise", "MODEL_DIR --data DATA [OPTION ...]", __doc__)
    parser.add_argument(
        "model", type=path, metavar="MODEL_DIR", help="the float32 version to copy: <store>/<name>/<version>"
    )
    add_data(parser, "; use the data that the model was trained on")
    parser.add_argument(
        "--split", help="split to measure both versions on (default: test, or val if there is no test split)"
    )
    parser.add_argument(
        "--version", type=version_number, metavar="N", help="version to publish (default: one more than the highest)"
    )
    add_score_threshold(parser)
    add_limit_images(parser)
    add_val_share(parser)
    add_skip_bad_boxes(parser)
    add_exif_boxes(parser)
    add_seed(parser)
    return parser


def quantise(arguments: argparse.Namespace) -> None:
    """Publishes the int8 copy, and prints both versions' AP."""
    data = data_source(arguments.data)
    source = arguments.model.absolute()
    if not (source / "model.json").is_file():
        raise ValueError(f"{arguments.model} is not a published model; name <store>/<name>/<version>")
    check_writable(source.parent)
    how = {
        "seed": arguments.seed,
        "skip_bad_boxes": arguments.skip_bad_boxes,
        "val_share": arguments.val_share,
        "exif_boxes": arguments.exif_boxes,
    }
    splits = splits_of(data, arguments.val_share)
    split = arguments.split or ("test" if "test" in splits else "val")
    card = json.loads((source / "model.json").read_text())
    white, labels = card.get("white", WHITE), tuple(card["labels"])
    test = renumber(open_checked(data, split, white=white, **how), labels, str(arguments.model))
    validation = None
    if split != "val" and "val" in splits:
        chosen_on = renumber(open_checked(data, "val", white=white, **how), labels, str(arguments.model))
        validation = Validation(chosen_on, f"{data}/val", arguments.limit_images)
    training = open_dataset(data, "train", **how)
    use_white(training, white)
    folder = publish_int8(
        source,
        next_version(source.parent.parent, source.parent.name) if arguments.version is None else arguments.version,
        training,
        test,
        f"{data}/{split}",
        arguments.limit_images,
        validation,
        arguments.score_threshold,
    )
    card = json.loads((folder / "model.json").read_text())
    print(json.dumps({name: {"AP": one["AP"], "AP50": one["AP50"]} for name, one in card["metrics"].items()}, indent=1))
    print(f"published {folder}, {card['bytes'] / 1e6:.1f} MB")
