"""Writes images of `shapes` to disk in COCO's format, to look at them or to train something else on them.

scripts/write_shapes.py --out images --split val --pictures 100
scripts/train.py --data coco:images --out runs/from-disk      (wants train and val)
"""

import argparse
from pathlib import Path

from faster_rcnn.commands.command_line import run_command
from faster_rcnn.data.shapes import SPLITS, Shapes, write_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", choices=list(SPLITS), default="train", help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    write_coco(Shapes(arguments.split, arguments.images, arguments.seed), arguments.out)
    print(f"wrote {arguments.out}/{arguments.split} and {arguments.out}/annotations/{arguments.split}.json")


if __name__ == "__main__":
    run_command(main)
