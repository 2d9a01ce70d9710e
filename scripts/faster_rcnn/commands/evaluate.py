"""Measures a training run in PyTorch, a published model through the service's own code, or sources of proposals.

faster-rcnn evaluate runs/mine --split test
faster-rcnn evaluate model_store/shapes/1 --data shapes --split test
faster-rcnn evaluate runs/fast --proposals selective-search         (instead of the proposals it was trained on)
faster-rcnn evaluate --proposals sliding-window --proposals rpn:runs/mine --data voc:DIR

Writes a folder with metrics.json, tables, plots, images and the detector's mistakes. Its index.html shows them all.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faster_rcnn.commands.argument_types import count, path, share, source
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
    run_command,
    val_share_for,
)
from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.subset import Subset
from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.limits import Limits, limits_of
from faster_rcnn.evaluation import Predictor, collect, fast_rcnn_predictor, torch_predictor
from faster_rcnn.evaluation.limits import limit_warnings
from faster_rcnn.evaluation.report import compare_sources, write_report
from faster_rcnn.evaluation.threshold import ScoredDetections, describe_choice, doubts, explain_choice
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.proposal_sources.sources import SOURCES, propose_for, white_of_sources
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, WithProposals
from faster_rcnn.training.run import RunRecord, find_record, proposals_of_step
from service.images.depth import WHITE


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn evaluate`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("faster-rcnn evaluate", lambda: evaluate(arguments), arguments.out)


def build_parser() -> Parser:
    parser = Parser("evaluate", "[RUN | MODEL_DIR] [OPTION ...]", __doc__)
    parser.add_argument(
        "target", type=path, nargs="?", metavar="RUN | MODEL_DIR", help="run folder, or folder of a published version"
    )
    add_data(parser, " (default: the data of RUN)")
    parser.add_argument("--split", help="split to measure on (default: the split that RUN was validated on, or val)")
    add_limit_images(parser)
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="folder to write (default: evaluation-SPLIT in RUN, or in this folder)"
    )
    parser.add_argument(
        "--score-threshold",
        type=share,
        metavar="SCORE",
        help="count mistakes from this score on (default: that of MODEL_DIR; for RUN the one with the highest F1)",
    )
    add_device(parser)
    more = parser.add_argument_group("less often needed")
    more.add_argument(
        "--checkpoint", choices=("best", "last"), help="checkpoint of RUN to measure (default: best, if there is one)"
    )
    more.add_argument(
        "--proposals",
        action="append",
        type=source,
        default=[],
        metavar="SOURCE",
        help=f"{SOURCES}. Without RUN: a source to measure; may be repeated. With RUN: the proposals for its head",
    )
    more.add_argument(
        "--show", type=count, default=50, metavar="N", help="number of images drawn in the report (default: 50)"
    )
    add_val_share(more, "as in RUN, or 0.2 of data without any splits")
    add_skip_bad_boxes(more, " (default: as in RUN)")
    add_exif_boxes(more, "; as in RUN")
    add_seed(more)
    add_workers(more, os.cpu_count() or 1)
    return parser


def evaluate(arguments: argparse.Namespace) -> None:
    """Measures the target or the sources of proposals, and writes a report."""
    target: Path | None = arguments.target
    if target is None and not arguments.proposals:
        raise ValueError("nothing to measure; name a RUN or MODEL_DIR, or a source by --proposals")
    record = None if target is None else find_record(check_version_named(target))
    data = data_source(arguments.data, record.data if record else None)
    record = record or RunRecord()  # the defaults: split val, all boxes
    split = arguments.split or record.val_split
    out: Path = arguments.out or place_for_reports(target) / f"evaluation-{split}"
    check_writable(out)
    skip = arguments.skip_bad_boxes or record.skip_bad_boxes
    dataset = open_checked(
        data,
        split,
        arguments.seed,
        skip,
        arguments.workers,
        white=white_of_sources(arguments.proposals) if target is None else white_of_target(target),
        val_share=val_share_for(arguments, record, data),
        exif_boxes=arguments.exif_boxes or record.exif_boxes,
    )
    if arguments.limit_images is not None:
        dataset = Subset(dataset, arguments.limit_images)
    about = {"target": str(target), "data": f"{data}/{split}", "seed": arguments.seed}
    if target is None:
        print(measure_sources(dataset, arguments, about, out))
    else:
        dataset, predict, details, limits = open_target(target, dataset, record, arguments)
        truths, predictions = collect(dataset, predict)
        threshold, remarks = threshold_of(
            target, arguments.score_threshold, about["data"], truths, predictions, dataset
        )
        about |= details | {"score_threshold": threshold}
        remarks += limit_warnings(truths, predictions, threshold, limits)
        written = write_report(out, dataset, truths, predictions, about, arguments.show, threshold, remarks)
        print(json.dumps(written, indent=1))
        print(*remarks, sep="\n")
    print(f"wrote {out / 'index.html'}")


def threshold_of(
    target: Path,
    named: float | None,
    data: str,
    truths: Sequence[Sample],
    predictions: Sequence[Prediction],
    dataset: Dataset,
) -> tuple[float, list[str]]:
    """The score threshold at which mistakes are counted, and sentences about it.

    named: by the user;  data: the name of `dataset`. Without a named one, a published version uses its own threshold.
    A run has none yet, so the rule is applied to the data that is measured.
    """
    served = None
    if named is None and (target / "model.onnx").is_file():
        served = float(json.loads((target / "model.json").read_text())["score_threshold"])
    found = ScoredDetections.match(truths, predictions, len(dataset.labels))
    threshold, record = describe_choice(found, data, served if named is None else named)
    explained = explain_choice(threshold, record, "the one that the model is served with" if served is not None else "")
    return threshold, [explained, *(f"warning: {doubt}" for doubt in doubts(threshold, record))]


def check_version_named(target: Path) -> Path:
    """Returns `target`. Raises ValueError if it is the folder of a model, because only a version can be measured."""
    if versions := sorted(file.parent.name for file in target.glob("*/model.onnx")):
        raise ValueError(
            f"{target} holds the versions {', '.join(versions)}; name one, such as {target / versions[-1]}"
        )
    return target


def white_of_target(target: Path) -> int:
    """The value that means white for the detector to measure."""
    if (target / "model.onnx").is_file():
        return int(json.loads((target / "model.json").read_text()).get("white", WHITE))
    return DetectorConfig.from_dict(read_checkpoint(target, best_or_last(target))["config"]).white


def place_for_reports(target: Path | None) -> Path:
    """The run folder, or the current folder for a published version, which must not change."""
    if target is None or (target / "model.onnx").is_file():
        return Path()
    return target.parent if target.is_file() else target


def measure_sources(dataset: Dataset, arguments: argparse.Namespace, about: dict[str, Any], out: Path) -> str:
    """The recall of each source, as a table."""
    tables = {source: propose(dataset, source, LIMIT, arguments) for source in dict.fromkeys(arguments.proposals)}
    return compare_sources(out, dataset, tables, about | {"target": ", ".join(tables)}, arguments.show)


def open_target(
    target: Path, dataset: Dataset, record: RunRecord, arguments: argparse.Namespace
) -> tuple[Dataset, Predictor, dict[str, Any], Limits | None]:
    """Opens the detector to measure.

    Returns the data set, with proposals if the detector needs them; the predictor; for the report, the names of the
    checkpoint and of the source of the proposals; and the detector's limits.
    """
    if (target / "model.onnx").is_file():
        if arguments.proposals:
            raise ValueError(f"{target} makes its own proposals; leave out --proposals, or name a run")
        card = json.loads((target / "model.json").read_text())
        dataset = renumber(dataset, tuple(card["labels"]), str(target))
        return dataset, onnx_predictor(target), {}, limits_of(card.get("detector", {}))
    which = arguments.checkpoint or best_or_last(target)
    state = read_checkpoint(target, which)
    detector = build_detector(state).to(device_of(arguments)).eval()
    dataset = renumber(dataset, detector.config.labels, str(target))
    objective = state.get("objective", "joint")  # older checkpoints lack the key; all of them are joint
    if objective == "rpn":
        raise ValueError(f"{target} has trained only an RPN; measure it by --proposals rpn:{target} without RUN")
    sources = sources_for(target, record, arguments)
    if not sources and objective == "fast-rcnn":
        raise ValueError(f"{target} makes no proposals of its own; name their source by --proposals")
    details, limits = {"checkpoint": which, "iteration": state["iteration"]}, limits_of(detector.describe())
    if not sources:
        return dataset, torch_predictor(detector), details, limits
    limit = record.proposal_limit or (detector.config.proposals.after_nms if proposals_of_step(target) else LIMIT)
    table = propose(dataset, sources[0], limit, arguments)
    details |= {"proposals_from": sources[0]}
    return WithProposals(dataset, table, limit), fast_rcnn_predictor(detector), details, limits


def sources_for(target: Path, record: RunRecord, arguments: argparse.Namespace) -> list[str]:
    """The source of the proposals for a run's head; empty if the run makes its own."""
    if len(arguments.proposals) > 1:
        raise ValueError(f"{target} can use only one source of proposals; give --proposals once")
    if arguments.proposals:
        return list(arguments.proposals)
    if (given := proposals_of_step(target)) is None:
        return [] if record.proposals is None else [record.proposals]
    before, table = given
    own = arguments.data in (None, record.data) and arguments.split in (None, record.val_split)
    if not own or arguments.seed or not table.is_file():
        raise ValueError(
            f"{target} makes no proposals of its own, and {before} saved proposals only for its validation split; "
            f"name their source, as --proposals rpn:{before}"
        )
    return [str(table)]


def propose(dataset: Dataset, source: str, limit: int, arguments: argparse.Namespace) -> ProposalTable:
    return propose_for(dataset, source, limit, workers=arguments.workers, device=str(device_of(arguments)))
