"""Measures a run's detector in PyTorch, a published model through the service's own code, or sources of proposals.

scripts/evaluate.py runs/mine --data voc:DIR --split test
scripts/evaluate.py model_store/shapes/1 --data shapes --split test
scripts/evaluate.py runs/fast --proposals selective-search           (another source than it was trained on)
scripts/evaluate.py --proposals sliding-window --proposals rpn:runs/mine --data voc:DIR

Writes a folder with metrics.json, tables, plots, images and mistakes; index.html in it shows all of them.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from faster_rcnn.commands.command_line import positive, run_command
from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.sources import check_labels
from faster_rcnn.data.subset import Subset
from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.evaluation import Predictor, collect, torch_predictor
from faster_rcnn.evaluation.report import compare_sources, write_report
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.proposal_sources.sources import SOURCES, propose_for
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, WithProposals
from faster_rcnn.training.fast_rcnn import given_predictor
from faster_rcnn.training.runs import proposals_of_step, record_of


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "target", type=Path, nargs="?", metavar="RUN|MODEL_DIR", help="a run's folder or a published version's"
    )
    parser.add_argument("--data", help="voc:DIR, coco:DIR or shapes (default: RUN's own, else shapes)")
    parser.add_argument("--split", help="default: what RUN was validated on, else val")
    parser.add_argument("--seed", type=int, default=0, help="of the images that shapes draws (default: %(default)s)")
    parser.add_argument(
        "--skip-bad-boxes", action="store_true", help="leave out what the check refuses (default: as RUN did)"
    )
    parser.add_argument("--pictures", type=positive, help="measure on this many (default: all)")
    parser.add_argument("--show", type=int, default=50, help="draw this many of them (default: %(default)s)")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="default: RUN's best, if it has one")
    parser.add_argument(
        "--proposals",
        action="append",
        default=[],
        metavar="SOURCE",
        help=f"{SOURCES}: without RUN, measure them, may be repeated; with it, the regions that its head looks at",
    )
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, help="that decode images or search them"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, help="the folder that is written (default: RUN/evaluation-SPLIT, else ./evaluation-SPLIT)"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    target: Path | None = arguments.target
    run = {} if target is None else record_of(target)
    data, split = arguments.data or run.get("data", "shapes"), arguments.split or run.get("val_split", "val")
    skip = arguments.skip_bad_boxes or run.get("skip_bad_boxes", False)
    dataset = open_checked(data, split, arguments.seed, skip, arguments.workers)
    if arguments.images is not None:
        dataset = Subset(dataset, arguments.images)
    out: Path = arguments.out or place_for_reports(target) / f"evaluation-{split}"
    about = {"target": str(target), "data": f"{data}/{split}", "seed": arguments.seed}
    if target is None:
        print(measure_sources(dataset, arguments, about, out))
    else:
        dataset, predict, details = open_target(target, dataset, run, arguments)
        about |= details
        truths, predictions = collect(dataset, predict)
        print(json.dumps(write_report(out, dataset, truths, predictions, about, arguments.show), indent=1))
    print(f"wrote {out / 'index.html'}")


def place_for_reports(target: Path | None) -> Path:
    """A run's own folder; else the current one, for a published version stays as it was published."""
    if target is None or (target / "model.onnx").is_file():
        return Path()
    return target.parent if target.is_file() else target


def measure_sources(dataset: Dataset, arguments: argparse.Namespace, about: dict[str, Any], out: Path) -> str:
    """The recall of sources alone, as a table."""
    if not arguments.proposals:
        raise ValueError("there is nothing to measure; name a RUN or MODEL_DIR, or a source by --proposals")
    tables = {source: propose(dataset, source, LIMIT, arguments) for source in dict.fromkeys(arguments.proposals)}
    return compare_sources(out, dataset, tables, about | {"target": ", ".join(tables)}, arguments.show)


def open_target(
    target: Path, dataset: Dataset, run: dict[str, Any], arguments: argparse.Namespace
) -> tuple[Dataset, Predictor, dict[str, Any]]:
    """The data set with the proposals that are looked at, if given; what answers for a run or a published model; and
    which of a run's states and which proposals these are."""
    if (target / "model.onnx").is_file():
        if arguments.proposals:
            raise ValueError(f"{target} makes its own proposals; leave out --proposals, or name a run")
        labels = tuple(json.loads((target / "model.json").read_text())["labels"])
        return renumber(dataset, labels, str(target)), onnx_predictor(target), {}
    which = arguments.checkpoint or best_or_last(target)
    state = read_checkpoint(target, which)
    detector = build_detector(state).to(arguments.device).eval()
    check_labels(dataset, detector.config.labels, str(target))
    objective = state.get("objective", "joint")  # all that there was before runs said so
    if objective == "rpn":
        raise ValueError(f"{target} has trained an RPN alone; measure it by --proposals rpn:{target} without RUN")
    sources = sources_for(target, run, arguments)
    if not sources and objective == "fast-rcnn":
        raise ValueError(f"{target} makes no proposals of its own; name their source by --proposals")
    details = {"checkpoint": which, "iteration": state["iteration"]}
    if not sources:
        return dataset, torch_predictor(detector), details
    limit = run.get("proposal_limit", detector.config.proposals.after_nms if proposals_of_step(target) else LIMIT)
    table = propose(dataset, sources[0], limit, arguments)
    return WithProposals(dataset, table, limit), given_predictor(detector), details | {"proposals_from": sources[0]}


def sources_for(target: Path, run: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """The source of the proposals that a run's head is to look at; empty if they are its own."""
    if len(arguments.proposals) > 1:
        raise ValueError(f"{target} looks at the proposals of one source; name only one by --proposals")
    if arguments.proposals:
        return list(arguments.proposals)
    if (given := proposals_of_step(target)) is None:
        return [run["proposals"]] if "proposals" in run else []
    before, table = given
    own = arguments.data in (None, run.get("data")) and arguments.split in (None, run.get("val_split"))
    if not own or arguments.seed or not table.is_file():
        raise ValueError(
            f"{target} makes no proposals of its own, and {before} left some for its validation split alone; "
            f"name their source, as --proposals rpn:{before}"
        )
    return [str(table)]


def propose(dataset: Dataset, source: str, limit: int, arguments: argparse.Namespace) -> ProposalTable:
    return propose_for(dataset, source, limit, workers=arguments.workers, device=arguments.device)


if __name__ == "__main__":
    run_command(main)
