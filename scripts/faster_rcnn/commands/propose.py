"""Writes region proposals for a data set into a file, to train Fast R-CNN on them or to compare them.

faster-rcnn propose --source selective-search --data voc:images --split train --out proposals/train.npz --workers 8
faster-rcnn propose --source rpn:runs/mine --data shapes --split val --limit-images 500 --out proposals/val.npz

A source is sliding-window, selective-search, rpn:RUN or another file of proposals. The module
faster_rcnn.proposal_sources.table describes the file, for other tools that write one.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from faster_rcnn.commands.argument_types import path, positive, source
from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_device,
    add_exif_boxes,
    add_limit_images,
    add_seed,
    add_skip_bad_boxes,
    add_val_share,
    add_workers,
    check_writable,
    data_source,
    device_of,
    required,
    run_command,
)
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.subset import Subset
from faster_rcnn.proposal_sources.sources import SOURCES, check_source, propose_for, white_of_sources
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn propose`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("faster-rcnn propose", lambda: propose(arguments), arguments.out)


def build_parser() -> Parser:
    parser = Parser("propose", "--source SOURCE --data DATA --out FILE.npz [OPTION ...]", __doc__)
    parser.add_argument("--source", "--proposals", type=source, help=SOURCES)
    add_data(parser)
    parser.add_argument("--split", default="train", help="split to compute proposals for (default: %(default)s)")
    parser.add_argument("--out", type=path, metavar="FILE.npz", help="file to write")
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        default=LIMIT,
        help="keep the best N proposals per image (default: %(default)s)",
    )
    add_limit_images(parser, "all; required for generated images, which never end")
    add_device(parser)
    more = parser.add_argument_group("less often needed")
    add_workers(more, 1)
    more.add_argument(
        "--cache", type=path, metavar="DIR", help="cache folder of Selective Search (default: in ~/.cache)"
    )
    add_val_share(more)
    add_skip_bad_boxes(more)
    add_exif_boxes(more)
    add_seed(more)
    return parser


def propose(arguments: argparse.Namespace) -> None:
    """Writes the file, and prints the number of proposals and the time per image."""
    source: str = required(arguments.source, "--source", f"name one: {SOURCES}")
    data = data_source(arguments.data)
    out: Path = required(arguments.out, "--out", "name the file to write, such as proposals.npz")
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} must end in .npz, so that other commands recognise the file; rename it")
    check_source(source)
    check_writable(out.parent)
    dataset = open_checked(
        data,
        arguments.split,
        arguments.seed,
        arguments.skip_bad_boxes,
        arguments.workers,
        white=white_of_sources([source]),
        val_share=arguments.val_share,
        exif_boxes=arguments.exif_boxes,
    )
    if arguments.limit_images is not None:
        dataset = Subset(dataset, arguments.limit_images)
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    table = propose_for(dataset, source, arguments.limit, arguments.cache, arguments.workers, str(device_of(arguments)))
    seconds = time.perf_counter() - start
    ProposalTable(table.regions, f"{table.made}; data {data}/{arguments.split}").save(out)
    print(f"wrote {out}: {summary(table, seconds)}")


def summary(table: ProposalTable, seconds: float) -> str:
    """The number of images, the proposals per image, and the seconds per image."""
    counts = np.array([len(regions.boxes) for regions in table.values()])
    return (
        f"{len(table)} images, {counts.mean():.0f} boxes per image ({counts.min()} to {counts.max()}), "
        f"{seconds / len(table):.3g} seconds per image"
    )
