"""Selects a source of proposals by the name that was given on the command line."""

from collections.abc import Sequence
from pathlib import Path

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.proposal_sources.rpn import rpn_regions, uncut_limits
from faster_rcnn.proposal_sources.selective_search import selective_search_table
from faster_rcnn.proposal_sources.sliding_window import sliding_window_table
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, known

SOURCES = "sliding-window, selective-search, rpn:RUN, FILE.npz"


def propose_for(
    dataset: Dataset,
    source: str,
    limit: int = LIMIT,
    cache: Path | None = None,
    workers: int = 1,
    device: str = "cpu",
) -> ProposalTable:
    """At most `limit` proposals for each image of a data set.

    source: `sliding-window`, `selective-search`, `rpn:RUN` (a run folder or a checkpoint) or the `.npz` file of a
    table.
    cache, workers: for selective search;  device: for the RPN.
    Raises ValueError for an unknown source, a run without a trained RPN or a file that lacks an image,
    FileNotFoundError for a run or file that does not exist.
    """
    if limit < 1:
        raise ValueError(f"a limit of {limit} leaves no proposals; choose at least 1")
    kind, _, run = source.partition(":")
    if source == "sliding-window":
        return sliding_window_table(dataset, limit)
    if source == "selective-search":
        return selective_search_table(dataset, limit, cache, workers)
    if kind == "rpn" and run:
        detector = trained_rpn(Path(run)).to(device)
        return rpn_regions(detector, dataset, uncut_limits(detector, limit), source)
    if source.endswith(".npz"):
        return _from_file(dataset, Path(source), limit)
    raise ValueError(f"{source!r} is not a source of proposals; choose one of: {SOURCES}")


def check_source(source: str) -> None:
    """Checks a source before any data is read.

    Raises ValueError for an unknown source or a run without a trained RPN, FileNotFoundError for a run or file that
    does not exist.
    """
    kind, _, run = source.partition(":")
    if kind == "rpn" and run:
        trained_rpn(Path(run))
    elif source.endswith(".npz"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"{source} does not exist; faster-rcnn propose --out {source} writes it")
    elif source not in ("sliding-window", "selective-search"):
        raise ValueError(f"{source!r} is not a source of proposals; choose one of: {SOURCES}")


def white_of_sources(sources: Sequence[str]) -> int | None:
    """The white that the detectors of the sources were trained with; None if no source is a detector.

    Raises ValueError if they differ, because the images can be read with one white only.
    """
    runs = [Path(run) for kind, _, run in (source.partition(":") for source in sources) if kind == "rpn" and run]
    configs = [DetectorConfig.from_dict(read_checkpoint(run, best_or_last(run))["config"]) for run in runs]
    whites = {config.white for config in configs}
    if len(whites) > 1:
        found = ", ".join(f"{run}: {config.white:,}" for run, config in zip(runs, configs, strict=True))
        raise ValueError(f"the detectors were trained with different values for white ({found}); take one at a time")
    return whites.pop() if whites else None


def trained_rpn(run: Path) -> FasterRCNN:
    """The detector of a run folder or checkpoint, in evaluation mode: the best one if there is one, else the last.

    Raises ValueError if its RPN was not trained, FileNotFoundError if there is no checkpoint.
    """
    state = read_checkpoint(run, best_or_last(run))
    if state.get("objective", "joint") == "fast-rcnn":
        raise ValueError(
            f"rpn:{run} has trained only Fast R-CNN, so its RPN is untrained; choose a run with --schedule joint or "
            "alternating, or the folder 1-rpn or 3-rpn of an alternating run"
        )
    return build_detector(state).eval()


def _from_file(dataset: Dataset, file: Path, limit: int) -> ProposalTable:
    table = ProposalTable.load(file)
    try:
        names = known(dataset, table)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return ProposalTable({name: table[name].best(limit) for name in names}, f"{table.made}; limit {limit}")
