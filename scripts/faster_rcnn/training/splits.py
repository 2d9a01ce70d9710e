"""The two splits of a training run, read in full before the first iteration so that nothing fails late."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from faster_rcnn.data.class_numbers import renumber, unused_classes
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import check_before_training, summary
from faster_rcnn.data.faults import Fault
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.image_record import changes, image_record, read_image_record, write_image_record
from faster_rcnn.data.orientation import NOT_CONFIRMED, TURNED
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.subset import Subset
from faster_rcnn.data.white import use_white
from faster_rcnn.training.agreement import check_same_data
from faster_rcnn.training.processes import rank
from faster_rcnn.training.run import RunRecord
from faster_rcnn.training.shared_check import SameFiles

# Schedules other than joint compute proposals for every training image beforehand; the generator has a million images.
SHAPES_WITH_PROPOSALS = 2000


def open_splits(record: RunRecord) -> tuple[Dataset, Dataset, RunRecord]:
    """The training and validation split, and the record with the digests of their annotations.

    Processes on one machine divide the images among them, and all processes compare what they have found.
    Raises ValueError if the data has faults that prevent training (the message names the first ones), if the training
    split has no objects, if the annotations have changed since the run began, or if another process has other data.
    """
    training, validation = (
        open_dataset(
            record.data,
            split,
            skip_bad_boxes=record.skip_bad_boxes,
            val_share=record.val_share,
            exif_boxes=record.exif_boxes,
        )
        for split in (record.train_split, record.val_split)
    )
    for dataset in (training, validation):
        use_white(dataset, record.detector_config.white)
    training = renumber(training, record.detector_config.labels, "the run")
    validation = renumber(validation, training.labels, f"{record.data}/{record.train_split}")
    faults = check_before_training((training, validation), max(1, record.training_options.workers), SameFiles)
    if rank() == 0:
        _report(faults, record)
    digests = (_digest(training), _digest(validation))
    check_same_data((training, validation), digests)
    if record.annotations_sha256 not in (None, digests):
        raise ValueError(
            f"the annotations of {record.data} are not those that the run began with; restore them, or start a new run"
        )
    if not _has_objects(training):
        raise ValueError(f"{record.data}/{record.train_split} has no objects to learn from; add annotations")
    if rank() == 0 and isinstance(training, FolderDataset):
        for fault in unused_classes(training):
            print(fault)
    if rank() == 0 and not _has_objects(validation):
        print(f"warning: {record.data}/{record.val_split} has no objects, so no best checkpoint can be chosen")
    if record.data == "shapes" and record.schedule != "joint":
        training = Subset(training, SHAPES_WITH_PROPOSALS)
    return training, validation, replace(record, annotations_sha256=digests)


def _report(faults: Sequence[Fault], record: RunRecord) -> None:
    for fault in faults:
        if fault.kind in (NOT_CONFIRMED, TURNED):  # the detector would learn wrong boxes
            print(fault)
    if faults:
        effect = "faulty data is left out" if record.skip_bad_boxes else "none of them prevents training"
        print(f"the data has {summary(faults)}; {effect}; faster-rcnn check --data {record.data} lists all")


def check_same_images(splits: Sequence[Dataset], folder: Path, accept_changes: bool) -> None:
    """Compares the images with those that the run in `folder` began with, and keeps their record there.

    Only the first process, which owns the folder, calls it.

    Raises ValueError, naming the first, if images have changed, unless `accept_changes`.
    """
    now, before = image_record(splits), read_image_record(folder)
    if not now:
        return
    if before is not None and (found := changes(before, now)):
        if not accept_changes:
            raise ValueError(
                f"since the run began, {found}; restore them, start a new run, or go on with --accept-changed-images"
            )
        print(f"warning: since the run began, {found}; the run goes on with the images as they are now")
    write_image_record(folder, now)


def _digest(dataset: Dataset) -> str | None:
    """A digest of the names, sizes and objects of annotated images; None for generated images."""
    if not isinstance(dataset, FolderDataset):
        return None
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        boxes, labels = dataset.objects(index)
        digest.update(f"{dataset.name(index)} {dataset.size(index)} {len(labels)}\n".encode())
        digest.update(np.ascontiguousarray(boxes, np.float32).tobytes() + labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def _has_objects(dataset: Dataset) -> bool:
    """Whether any image has an object. Generated images always do."""
    if not isinstance(dataset, FolderDataset):
        return True
    return any(len(dataset.objects(index)[1]) for index in range(len(dataset)))
