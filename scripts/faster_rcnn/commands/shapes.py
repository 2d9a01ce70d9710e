"""Writes generated images to disk in COCO's format, to look at them or to train another detector on them.

faster-rcnn shapes --out images --split train --limit-images 1000
faster-rcnn shapes --out images --split val --limit-images 100
faster-rcnn train --data coco:images --out runs/from-disk
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from faster_rcnn.commands.argument_types import path
from faster_rcnn.commands.command_line import (
    Parser,
    add_limit_images,
    add_seed,
    check_writable,
    required,
    run_command,
)
from faster_rcnn.data.shapes import SPLITS, Shapes, write_coco

IMAGES = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn shapes`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("faster-rcnn shapes", lambda: shapes(arguments), arguments.out)


def build_parser() -> Parser:
    parser = Parser("shapes", "--out DIR [OPTION ...]", __doc__)
    parser.add_argument("--out", type=path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--split", choices=list(SPLITS), default="train", help="split to generate (default: %(default)s)"
    )
    add_limit_images(parser, str(IMAGES))
    add_seed(parser)
    return parser


def shapes(arguments: argparse.Namespace) -> None:
    """Writes one split: its images, and its annotations in one file."""
    out: Path = required(arguments.out, "--out", "name the folder to write")
    check_writable(out)
    write_coco(Shapes(arguments.split, arguments.limit_images or IMAGES, arguments.seed), out)
    print(f"wrote {out}/{arguments.split} and {out}/annotations/{arguments.split}.json")
