"""A run folder before anything is written into it: another training may use it, and its disk may be too small."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from faster_rcnn.detector.checkpoint import BEST, NAME
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.freezing import freeze_before
from faster_rcnn.files import free_bytes, size
from faster_rcnn.training.optimiser import OPTIMISERS
from faster_rcnn.training.run import STEPS, RunRecord

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

# Measured on runs of `compact` on generated images.
BYTES_PER_ITERATION = 600  # a row of losses.csv and six values for TensorBoard
BYTES_PER_VALIDATION = 2_000_000  # the sheet of images, as JPEG and as TensorBoard's PNG
BYTES_OF_REST = 500_000  # run.json, losses.png
_LEFT_BY_A_CRASH = ".*.part"
_held: set[int] = set()  # the locks of this process


def _leave_locks_to_the_parent() -> None:
    """For a new worker process: it may outlive its parent by seconds, and must not keep the folder locked."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextmanager
def used_alone(folder: Path) -> Iterator[None]:
    """Holds a lock on the run folder, which must exist. The system releases it when the process ends, however it ends.

    Raises BlockingIOError if another process holds it. File systems without locks are not protected.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another training uses {folder}; wait until it ends, stop it, or choose another --out"
            ) from error
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        if handle in _held:  # not in a worker process
            _held.remove(handle)
            os.close(handle)


def check_unused(folder: Path) -> None:
    """Raises BlockingIOError if another process trains in this folder."""
    if folder.is_dir():
        with used_alone(folder):
            pass


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote; call it with the folder locked."""
    for file in folder.rglob(_LEFT_BY_A_CRASH):
        file.unlink(missing_ok=True)


def check_room(folder: Path, record: RunRecord) -> None:
    """Raises OSError if the disk has less room than the run will write at least."""
    needed, free = bytes_to_write(folder, record), free_bytes(folder)
    if needed > free:
        raise OSError(
            f"{folder}: no room on the disk for this run ({size(needed)} needed, {size(free)} free); a checkpoint "
            f"takes {size(sum(checkpoint_bytes(record)))}, and the one before it stays until it is complete; free some "
            "space, or write to another disk"
        )


def bytes_to_write(folder: Path, record: RunRecord) -> int:
    """The bytes that the run adds to its folder, at its largest: while a checkpoint replaces the previous one."""
    options = record.training_options
    weights, state = checkpoint_bytes(record)
    places = [folder / step for step in STEPS] if record.schedule == "alternating" else [folder]
    files = {place / name: number for place in places for name, number in ((NAME, weights + state), (BEST, weights))}
    if record.schedule == "alternating":
        files |= {folder / NAME: weights, folder / BEST: weights}
    missing = sum(number for file, number in files.items() if not file.is_file())
    validations = options.iterations // options.validate_every + len(places)
    logs = options.iterations * BYTES_PER_ITERATION + validations * BYTES_PER_VALIDATION + BYTES_OF_REST
    return missing + weights + state + (0 if any(file.is_file() for file in files) else logs)


def checkpoint_bytes(record: RunRecord) -> tuple[int, int]:
    """The bytes of a checkpoint's tensors: the detector's, and those of its optimiser."""
    with torch.device("meta"):
        detector = FasterRCNN(record.detector_config)
    options = record.training_options
    if options.trainable_from is not None:
        freeze_before(detector, options.trainable_from)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    trained = sum(one.numel() * one.element_size() for one in detector.parameters() if one.requires_grad)
    return weights, trained * OPTIMISERS[options.optimiser].values_per_weight
