"""Makes region proposals for a data set and writes them as one table, to train Fast R-CNN on them or to compare them.

scripts/propose.py --source selective-search --data voc:images --split train --out proposals/train.npz --workers 8
scripts/propose.py --source rpn:runs/mine --data shapes --split val --out proposals/val.npz

A source is sliding-window, selective-search, rpn:RUN or another table. What a table looks like, to write one with other
tools, is in scripts/faster_rcnn/proposal_sources/table.py.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from faster_rcnn.commands.command_line import positive, run_command
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.subset import Subset
from faster_rcnn.proposal_sources.sources import SOURCES, propose_for
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help=SOURCES)
    parser.add_argument("--data", default="shapes", help="shapes, coco:DIR or voc:DIR (default: %(default)s)")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--limit", type=positive, default=LIMIT, help="boxes an image (default: %(default)s)")
    parser.add_argument("--pictures", type=positive, help="the first so many (default: all; shapes has a million)")
    parser.add_argument(
        "--workers", type=positive, default=1, help="of selective search and of the check (default: %(default)s)"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of selective search (default: in ~/.cache)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the images that shapes draws (default: %(default)s)")
    parser.add_argument("--skip-bad-boxes", action="store_true", help="leave out what the check refuses")
    return parser.parse_args()


def summary(table: ProposalTable, seconds: float) -> str:
    counts = np.array([len(regions.boxes) for regions in table.values()])
    return (
        f"{len(table)} images, {counts.mean():.0f} boxes an image ({counts.min()} to {counts.max()}), "
        f"{seconds / len(table):.3g} seconds an image"
    )


def main() -> None:
    arguments = parse()
    out: Path = arguments.out
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} does not end in .npz, by which it is known as a table; rename it")
    dataset = open_checked(arguments.data, arguments.split, arguments.seed, arguments.skip_bad_boxes, arguments.workers)
    if arguments.images is not None:
        dataset = Subset(dataset, arguments.images)
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    table = propose_for(
        dataset,
        arguments.source,
        arguments.limit,
        arguments.cache,
        arguments.workers,
        arguments.device,
    )
    seconds = time.perf_counter() - start
    ProposalTable(table.regions, f"{table.made}; data {arguments.data}/{arguments.split}").save(out)
    print(f"wrote {out}: {summary(table, seconds)}")


if __name__ == "__main__":
    run_command(main)
