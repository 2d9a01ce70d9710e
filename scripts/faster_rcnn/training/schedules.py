"""A run from its record to the trained detector: data, weights, and the schedule that it names."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faster_rcnn.data.coverage import anchor_coverage
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import check_before_training, summary
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.sources import check_labels, open_dataset
from faster_rcnn.data.subset import Subset
from faster_rcnn.detector.checkpoint import NAME, load_detector
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.proposal_sources.sources import propose_for
from faster_rcnn.proposal_sources.table import ProposalTable, WithProposals
from faster_rcnn.training.alternating import alternate
from faster_rcnn.training.fast_rcnn import measure_normalisation
from faster_rcnn.training.loop import train
from faster_rcnn.training.processes import rank, wait_for_all
from faster_rcnn.training.recipe import fresh_detector, options_of, write_run
from faster_rcnn.training.tasks import TASKS

# The generator's million images would want as many proposals made beforehand.
SHAPES_WITH_PROPOSALS = 2000


@dataclass(frozen=True)
class _Setting:
    """What a schedule works with. `fresh` builds the detector as it is before the first iteration."""

    run: dict[str, Any]
    training: Dataset
    validation: Dataset
    folder: Path
    device: torch.device

    def fresh(self) -> FasterRCNN:
        return fresh_detector(self.run).to(self.device)

    def begun(self) -> bool:
        return (self.folder / NAME).is_file()

    def detector(self) -> FasterRCNN:
        """The detector as the run's checkpoint has it, or a fresh one."""
        return load_detector(self.folder).to(self.device) if self.begun() else self.fresh()


def carry_out(run: dict[str, Any], folder: Path, device: torch.device) -> dict[str, Any]:
    """Trains what the record says in `folder`, from the beginning or from where it stopped.

    Returns the last validation's metrics and the `seconds` that all of the run took.
    """
    training, validation = _checked(run)
    setting = _Setting(run, training, validation, folder, device)
    if rank() == 0:
        if not setting.begun():
            config = DetectorConfig.from_dict(run["config"])
            with torch.device("meta"):
                strides = FasterRCNN(config).backbone.strides
            print(anchor_coverage(training, config, strides).report())
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, run)
    wait_for_all()
    metrics = SCHEDULES[run["schedule"]](setting)
    if rank() == 0:
        run["seconds"] = metrics["seconds"]
        write_run(folder, run)
    return metrics


def _checked(run: dict[str, Any]) -> tuple[Dataset, Dataset]:
    """The two splits, of which everything has been read once, so that nothing can fail late.

    Every process reads them, and every time: what cannot be read is left out in the same way.
    Raises ValueError that names the first faults, or says that there is nothing to learn from, or that the data is no
    longer what the run began with.
    """
    training, validation = (
        open_dataset(run["data"], run[split], skip_bad_boxes=run["skip_bad_boxes"])
        for split in ("train_split", "val_split")
    )
    check_labels(training, tuple(run["config"]["labels"]), "the run")
    check_labels(validation, training.labels, f"{run['data']}/{run['train_split']}")
    faults = check_before_training((training, validation), max(1, run["options"]["workers"]))
    if rank() == 0 and faults:
        left_out = "what is faulty is left out" if run["skip_bad_boxes"] else "none keeps training from starting"
        print(f"the data has {summary(faults)}; {left_out}; scripts/check_data.py --data {run['data']} shows all")
    digests = [_digest(dataset) for dataset in (training, validation)]
    if run.setdefault("annotations_sha256", digests) != digests:
        raise ValueError(
            f"the annotations of {run['data']} are not those that the run began with; put them back, or start a new run"
        )
    if not _objects(training):
        raise ValueError(f"{run['data']}/{run['train_split']} has no object to learn from; add annotations")
    if rank() == 0 and not _objects(validation):
        print(f"warning: {run['data']}/{run['val_split']} has no object, so that nothing can be chosen by its metrics")
    if run["data"] == "shapes" and run["schedule"] != "joint":
        training = Subset(training, SHAPES_WITH_PROPOSALS)
    return training, validation


def _digest(dataset: Dataset) -> str | None:
    """What tells a folder's images, sizes and objects from others; None for what is drawn as it is read."""
    if not isinstance(dataset, FolderDataset):
        return None
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        boxes, labels = dataset.objects(index)
        digest.update(f"{dataset.name(index)} {dataset.size(index)} {len(labels)}\n".encode())
        digest.update(np.ascontiguousarray(boxes, np.float32).tobytes() + labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def _objects(dataset: Dataset) -> bool:
    """Whether there is any object; what is drawn as it is read has some."""
    if not isinstance(dataset, FolderDataset):
        return True
    return any(len(dataset.objects(index)[1]) for index in range(len(dataset)))


def _joint(setting: _Setting) -> dict[str, Any]:
    begun = setting.begun()
    options = options_of(setting.run)
    return train(
        setting.detector(), TASKS["joint"], setting.training, setting.validation, options, setting.folder, begun
    )


def _alternating(setting: _Setting) -> dict[str, Any]:
    run, options = setting.run, options_of(setting.run)
    _, metrics = alternate(
        setting.fresh, setting.training, setting.validation, options, run["step_iterations"], setting.folder
    )
    return metrics


def _fast_rcnn(setting: _Setting) -> dict[str, Any]:
    run, begun, detector = setting.run, setting.begun(), setting.detector()
    splits = (setting.training, setting.validation)
    sources = (run["proposals_for_training"], run["proposals"])
    if sources[0] == sources[1] and sources[0].endswith(".npz"):
        _check_names_differ(*splits, sources[0])
    training, validation = (
        _with_given(setting, dataset, source, setting.folder / f"proposals-{name}.npz")
        for dataset, source, name in zip(splits, sources, ("train", "val"), strict=True)
    )
    if run["measure_targets"] and not begun:
        measured = measure_normalisation(training, detector.config.proposal_sampling)
        detector.config = replace(detector.config, target_normalisation=measured)
    return train(detector, TASKS["fast-rcnn"], training, validation, options_of(run), setting.folder, begun)


def _check_names_differ(training: Dataset, validation: Dataset, file: str) -> None:
    """Raises ValueError if one file cannot tell the images of two splits apart."""
    names = {training.name(index) for index in range(len(training))}
    both = names & {validation.name(index) for index in range(len(validation))}
    if both:
        raise ValueError(
            f"{len(both)} images have the same name in both splits, the first is {min(both)}, so that {file} cannot "
            "tell them apart; give two files: --proposals TRAIN.npz VAL.npz"
        )


def _with_given(setting: _Setting, dataset: Dataset, source: str, path: Path) -> WithProposals:
    """The data set with the proposals of a source, which are kept in the run's folder."""
    limit = setting.run["proposal_limit"]
    if not path.is_file() and rank() == 0:
        workers = max(1, setting.run["options"]["workers"])
        propose_for(dataset, source, limit, workers=workers, device=str(setting.device)).save(path)
    wait_for_all()
    return WithProposals(dataset, ProposalTable.load(path), limit)


SCHEDULES: dict[str, Callable[[_Setting], dict[str, Any]]] = {
    "joint": _joint,
    "alternating": _alternating,
    "fast-rcnn": _fast_rcnn,
}
