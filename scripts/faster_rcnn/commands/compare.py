"""Trains detectors that differ in one thing, with several seeds each, and writes a table of each comparison.

faster-rcnn compare --data voc:DIR --out runs/compare
faster-rcnn compare schedules pooling --data shapes --iterations 1000 --seeds 0 1 2 3 4 --out runs/compare
faster-rcnn compare proposals --data voc:DIR --out runs/compare -- --min-size 240 --anchor-scales 16 32 64 128

schedules: joint against alternating training;  pooling: RoIAlign against RoI max pooling (both joint);
proposals: Fast R-CNN on proposals of an RPN, of Selective Search, and of sliding windows.
The options after -- are passed to `faster-rcnn train`. Run the same command again to continue after an interruption.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tqdm import tqdm

from faster_rcnn.commands.argument_types import path, positive, seed_number
from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_exif_boxes,
    add_skip_bad_boxes,
    add_val_share,
    check_writable,
    data_source,
    required,
    run_command,
)
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.layouts.split_names import TRAIN
from faster_rcnn.data.sources import share_to_hold_out
from faster_rcnn.data.white import use_white
from faster_rcnn.detector.checkpoint import NAME, load_detector, read_checkpoint
from faster_rcnn.evaluation import evaluate, fast_rcnn_predictor, proposal_recall, without_pixels
from faster_rcnn.files import write_text
from faster_rcnn.proposal_sources.table import ProposalTable, WithProposals
from faster_rcnn.training.run import has_begun, read_record

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEW = 300  # proposals per image for the head of Faster R-CNN (section 3.3); Fast R-CNN uses 2000


@dataclass(frozen=True)
class Arm:
    """One way of training: its name in the tables, and its options of `faster-rcnn train`.

    after: the arm whose runs provide its proposals.
    """

    name: str
    options: tuple[str, ...]
    after: str = ""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("joint, RoIAlign", ("--schedule", "joint", "--roi-pooling", "align")),
        Arm("joint, RoI max pooling", ("--schedule", "joint", "--roi-pooling", "max")),
        Arm("alternating, RoIAlign", ("--schedule", "alternating", "--roi-pooling", "align")),
        Arm("RPN", ("--schedule", "fast-rcnn", "--roi-pooling", "align"), after="joint, RoIAlign"),
        Arm(
            "Selective Search",
            ("--schedule", "fast-rcnn", "--roi-pooling", "align", "--proposals", "selective-search"),
        ),
        Arm("sliding window", ("--schedule", "fast-rcnn", "--roi-pooling", "align", "--proposals", "sliding-window")),
    )
}
COMPARISONS = {
    "schedules": ("joint, RoIAlign", "alternating, RoIAlign"),
    "pooling": ("joint, RoIAlign", "joint, RoI max pooling"),
    "proposals": ("RPN", "Selective Search", "sliding window"),
}
# The four steps' shares of the iterations. The reference code's 2:1:2:1 suits a pretrained backbone; from scratch,
# the final backbone learns only in the second step.
FROM_SCRATCH_SHARES = (0.2, 0.5, 0.15, 0.15)


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn compare`. Returns the exit code."""
    own, passed_on = split_at_dashes(sys.argv[1:] if argv is None else list(argv))
    arguments = build_parser().parse_args(own)
    interrupted = "interrupted; the same command continues"
    return run_command("faster-rcnn compare", lambda: compare(arguments, passed_on), arguments.out, interrupted)


def split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, for this command, and those after it, for `faster-rcnn train`."""
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def build_parser() -> Parser:
    parser = Parser("compare", "[COMPARISON ...] --data DATA --out DIR [OPTION ...] [-- OPTIONS OF TRAIN]", __doc__)
    parser.add_argument(
        "comparisons", nargs="*", metavar="COMPARISON", help=f"what to compare: {', '.join(COMPARISONS)} (default: all)"
    )
    add_data(parser)
    add_val_share(parser)
    parser.add_argument(
        "--split", default="val", help="split to measure on; no checkpoint is chosen on it (default: %(default)s)"
    )
    parser.add_argument(
        "--iterations",
        type=positive,
        metavar="N",
        default=800,
        help="training iterations of each run, one batch each (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=seed_number,
        nargs="+",
        metavar="SEED",
        default=[0, 1, 2],
        help="seeds; each arm of a comparison is trained once per seed (default: 0 1 2)",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="folder of the runs and tables")
    return parser


def compare(arguments: argparse.Namespace, passed_on: list[str]) -> None:
    """Trains the arms that are not finished yet, and writes the tables after each run."""
    if unknown := set(arguments.comparisons) - COMPARISONS.keys():
        raise ValueError(f"unknown comparison {', '.join(sorted(unknown))}; choose from {', '.join(COMPARISONS)}")
    arguments.comparisons = arguments.comparisons or list(COMPARISONS)
    data_source(arguments.data)
    check_writable(required(arguments.out, "--out", "name the folder of the runs and tables"))
    names: list[str] = []
    for comparison in arguments.comparisons:
        for name in COMPARISONS[comparison]:
            names += [one for one in (ARMS[name].after, name) if one and one not in names]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    print(f"{len(names) * len(arguments.seeds)} runs in {arguments.out}")
    runs = [(ARMS[name], seed) for seed in arguments.seeds for name in names]
    reading = _reading_options(passed_on)
    if reading.val_share is not None:
        raise ValueError("--val-share is an option of compare too; name it before --, so that it counts for both")
    arguments.val_share = share_to_hold_out(arguments.data, TRAIN, arguments.split, arguments.val_share)
    dataset = open_checked(
        arguments.data,
        arguments.split,
        skip_bad_boxes=reading.skip_bad_boxes,
        val_share=arguments.val_share,
        exif_boxes=reading.exif_boxes,
    )
    for arm, seed in tqdm(runs, desc="runs", unit="run"):
        folder = train_arm(arm, seed, arguments, passed_on)
        results[arm.name].append(measured(folder, dataset))
        write_tables(arguments, passed_on, results)
    print((arguments.out / "comparison.md").read_text())


def _reading_options(passed_on: list[str]) -> argparse.Namespace:
    """How the data is read, from the options of training; training itself reports mistakes in the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_exif_boxes(parser)
    add_skip_bad_boxes(parser)
    add_val_share(parser)
    return parser.parse_known_args(passed_on)[0]


def folder_of(name: str, seed: int, out: Path) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def train_arm(arm: Arm, seed: int, arguments: argparse.Namespace, passed_on: list[str]) -> Path:
    """Trains the arm with a seed, or resumes that run, and returns the run folder.

    Raises ValueError if the run in the folder was made with other options, or fails.
    """
    folder = folder_of(arm.name, seed, arguments.out)
    begin = ["--out", str(folder), *options_of_arm(arm, seed, arguments), *passed_on]
    begun = has_begun(folder)
    if begun:
        record = read_record(folder)
        if record.command != shlex.join(["scripts/train.py", *begin]):
            raise ValueError(f"{folder} was made with other options ({record.command}); choose another --out")
        if record.seconds is not None:
            return folder
    command = [sys.executable, "-m", "faster_rcnn.commands.train"]
    command += ["--out", str(folder), "--resume"] if begun else begin
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / f"{folder.name}.log").open("a") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            raise ValueError(f"{folder} failed; {log.name} says why. Fix that and run the same command again")
    return folder


def options_of_arm(arm: Arm, seed: int, arguments: argparse.Namespace) -> list[str]:
    length = ["--iterations", str(arguments.iterations)]
    if "alternating" in arm.options:
        steps = [max(1, round(share * arguments.iterations)) for share in FROM_SCRATCH_SHARES]
        length = ["--step-iterations", *map(str, steps)]
    source = ["--proposals", f"rpn:{folder_of(arm.after, seed, arguments.out)}"] if arm.after else []
    # Validated once, at the end, on all images, so that no checkpoint is chosen.
    rest = ["--validate-every", str(10**9), "--validation-images", str(10**9), "--seed", str(seed)]
    share = [] if arguments.val_share is None else ["--val-share", str(arguments.val_share)]
    return ["--data", arguments.data, "--val-split", arguments.split, *share, *arm.options, *source, *length, *rest]


def measured(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """The figures of a finished run. They are cached in its folder."""
    file = folder / "compared.json"
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    metrics = read_checkpoint(folder / NAME)["metrics"]
    use_white(dataset, read_record(folder).detector_config.white)
    result = {name: metrics[name] for name in ("VOC_mAP", "AP50", "AP")}
    seconds = read_record(folder).seconds
    assert seconds is not None, f"{folder} is not finished"
    result["minutes"] = seconds / 60
    table = folder / "proposals-val.npz"
    if table.is_file():
        proposals = ProposalTable.load(table)
        few = WithProposals(dataset, proposals, FEW)
        result[f"VOC_mAP_{FEW}"] = evaluate(few, fast_rcnn_predictor(load_detector(folder).to(DEVICE)))["VOC_mAP"]
        truths = [without_pixels(dataset[index]) for index in range(len(dataset))]
        regions = [proposals[dataset.name(index)].boxes for index in range(len(dataset))]
        by_number = proposal_recall(truths, regions, (FEW, 2000))["by_number"]
        for number in (FEW, 2000):
            result[f"recall@0.5_{number}"] = by_number[str(number)]["R@0.5"]
            result[f"AR_{number}"] = by_number[str(number)]["AR"]
    write_text(file, json.dumps(result, indent=1) + "\n")
    return result


COLUMNS = {
    "VOC_mAP": "mAP@0.5 (area)",
    "AP": "AP@[.5:.95]",
    f"VOC_mAP_{FEW}": f"mAP@0.5 with {FEW} proposals",
    f"recall@0.5_{FEW}": f"recall@0.5, {FEW}",
    "recall@0.5_2000": "recall@0.5, 2000",
    f"AR_{FEW}": f"AR, {FEW}",
    "AR_2000": "AR, 2000",
    "minutes": "minutes of training",  # excludes computing the proposals and training the RPN that made them
}


def write_tables(arguments: argparse.Namespace, passed_on: list[str], results: dict[str, list[dict[str, Any]]]) -> None:
    """`comparison.json` with every run, `comparison.md` with mean ± deviation over the seeds."""
    write_text(arguments.out / "comparison.json", json.dumps(results, indent=1) + "\n")
    lines = [
        f"{arguments.data}, measured on {arguments.split}; {arguments.iterations} iterations per run, "
        f"seeds {' '.join(map(str, arguments.seeds))}; mean ± standard deviation. "
        f"Options passed to training: {' '.join(passed_on) or 'none'}",
    ]
    for comparison in arguments.comparisons:
        rows = [name for name in COMPARISONS[comparison] if results[name]]
        if not rows:
            continue
        columns = [column for column in COLUMNS if column in results[rows[0]][0]]
        lines += ["", f"### {comparison}", "", "| |" + "|".join(COLUMNS[column] for column in columns) + "|"]
        lines.append("|---|" + "---|" * len(columns))
        for name in rows:
            cells = [_cell([one[column] for one in results[name]], column) for column in columns]
            lines.append(f"| {name} |" + "|".join(cells) + "|")
    write_text(arguments.out / "comparison.md", "\n".join(lines) + "\n")


def _cell(values: list[float], column: str) -> str:
    digits = 1 if column == "minutes" else 3
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f" {mean(values):.{digits}f}{deviation} "
