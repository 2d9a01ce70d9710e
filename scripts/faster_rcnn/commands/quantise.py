"""Publishes a published model once more in int8, for a CPU: half the time, a third of the file.

    scripts/quantise.py model_store/shapes/1 --data shapes

The ranges of the features are measured on the first training images, and both versions on the test split; where AP
falls by more than a point nothing is published.
"""

import argparse
import json
import logging
from pathlib import Path

from faster_rcnn.commands.command_line import positive, run_command
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.sources import check_labels, open_dataset, splits_of
from faster_rcnn.graph.publish import next_version
from faster_rcnn.graph.publish_int8 import publish_int8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="<store>/<name>/<version>, in float32")
    parser.add_argument("--data", required=True, help="voc:DIR, coco:DIR or shapes: what the model was trained on")
    parser.add_argument("--split", help="what both are measured on (default: test, or val where there is none)")
    parser.add_argument("--version", type=int, help="default: one more than the highest")
    parser.add_argument("--pictures", type=positive, help="measure on this many (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the images that shapes draws (default: %(default)s)")
    parser.add_argument("--skip-bad-boxes", action="store_true", help="leave out what the check refuses")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser's advice to its caller, not to the user
    source = arguments.model.absolute()
    split = arguments.split or ("test" if "test" in splits_of(arguments.data) else "val")
    test = open_checked(arguments.data, split, arguments.seed, arguments.skip_bad_boxes)
    check_labels(test, tuple(json.loads((source / "model.json").read_text())["labels"]), str(arguments.model))
    folder = publish_int8(
        source,
        next_version(source.parent.parent, source.parent.name) if arguments.version is None else arguments.version,
        open_dataset(arguments.data, "train", arguments.seed, arguments.skip_bad_boxes),
        test,
        f"{arguments.data}/{split}",
        arguments.images,
    )
    card = json.loads((folder / "model.json").read_text())
    print(json.dumps({name: {"AP": one["AP"], "AP50": one["AP50"]} for name, one in card["metrics"].items()}, indent=1))
    print(f"published {folder}, {card['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
