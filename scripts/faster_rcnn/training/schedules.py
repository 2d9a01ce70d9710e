"""A run from its record to the trained detector: data, weights, and the schedule that it names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from faster_rcnn.data.coverage import anchor_coverage
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.pictures import check_before_training, summary
from faster_rcnn.data.sources import check_labels, open_dataset
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.proposal_sources.sources import propose_for
from faster_rcnn.proposal_sources.table import ProposalTable, WithProposals
from faster_rcnn.training.alternating import alternate
from faster_rcnn.training.checkpoint import NAME, load_detector
from faster_rcnn.training.given import measure_normalisation
from faster_rcnn.training.loop import train
from faster_rcnn.training.processes import rank, wait_for_all
from faster_rcnn.training.recipe import fresh_detector, options_of, write_run
from faster_rcnn.training.tasks import TASKS
from faster_rcnn.weights import fetch_weights


def carry_out(run: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    """Trains what the record says in `folder`, from the beginning or from where it stopped.

    Returns the last validation's metrics and the `seconds` that all of the run took.
    """
    weights = fetch_weights(run["backbone"], run["weights"])
    fresh = fresh_detector(run, weights, device)
    training, validation = _checked(run)
    if rank() == 0:
        detector = fresh()
        print(anchor_coverage(training, detector.config, detector.backbone.strides).report())
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, run)
    wait_for_all()
    metrics = SCHEDULES[run["schedule"]](run, fresh, training, validation, folder)
    if rank() == 0:
        run["seconds"] = metrics["seconds"]
        write_run(folder, run)
    return metrics


def _checked(run: dict[str, Any]) -> tuple[Dataset, Dataset]:
    """The two splits, of which everything has been read once, so that nothing can fail late.

    Every process reads them, and every time: what cannot be read is left out in the same way.
    Raises ValueError that names the first faults.
    """
    training, validation = (
        open_dataset(run["data"], run[split], skip_bad_boxes=run["skip_bad_boxes"])
        for split in ("train_split", "val_split")
    )
    check_labels(validation, training.labels, f"{run['data']}/{run['train_split']}")
    faults = check_before_training((training, validation), max(1, run["options"]["workers"]))
    if rank() == 0 and faults:
        left_out = "what is faulty is left out" if run["skip_bad_boxes"] else "none keeps training from starting"
        print(f"the data has {summary(faults)}; {left_out}; scripts/check_data.py --data {run['data']} shows all")
    return training, validation


Fresh = Callable[[], FasterRCNN]


def _joint(run: dict[str, Any], fresh: Fresh, training: Dataset, validation: Dataset, folder: Path) -> dict[str, Any]:
    resume = (folder / NAME).is_file()
    return train(fresh(), TASKS["joint"], training, validation, options_of(run), folder, resume)


def _alternating(
    run: dict[str, Any], fresh: Fresh, training: Dataset, validation: Dataset, folder: Path
) -> dict[str, Any]:
    _, metrics = alternate(fresh, training, validation, options_of(run), run["step_iterations"], folder)
    return metrics


def _fast_rcnn(
    run: dict[str, Any], fresh: Fresh, training: Dataset, validation: Dataset, folder: Path
) -> dict[str, Any]:
    resume = (folder / NAME).is_file()
    given_training = _with_given(run, training, folder / "proposals-train.npz")
    given_validation = _with_given(run, validation, folder / "proposals-val.npz")
    detector = load_detector(folder) if resume else fresh()
    if run["measure_targets"] and not resume:
        measured = measure_normalisation(given_training, detector.config.proposal_sampling)
        detector.config = replace(detector.config, target_normalisation=measured)
    return train(detector, TASKS["fast-rcnn"], given_training, given_validation, options_of(run), folder, resume)


def _with_given(run: dict[str, Any], dataset: Dataset, path: Path) -> WithProposals:
    """The data set with the proposals of the run's source, which are kept in the run's folder."""
    if not path.is_file() and rank() == 0:
        workers = max(1, run["options"]["workers"])
        propose_for(dataset, run["proposals"], run["proposal_limit"], workers=workers).save(path)
    wait_for_all()
    return WithProposals(dataset, ProposalTable.load(path), run["proposal_limit"])


SCHEDULES = {"joint": _joint, "alternating": _alternating, "fast-rcnn": _fast_rcnn}
