"""Checkpoints: everything that an interrupted training run needs to continue as if it had not been interrupted.

They do not contain the state of a random generator, because the random numbers of an iteration depend only on the
run's seed and the number of the iteration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.files import write_file

NAME = "checkpoint.pt"  # the last state, from which a training run resumes
BEST = "best.pt"  # the detector with the best validation result


def save_state(path: Path, detector: FasterRCNN, objective: str, iteration: int, **more: Any) -> None:
    """Writes a checkpoint whole or not at all, so that a crash or a full disk leaves the previous one intact.

    objective: the name of the training objective (joint, rpn or fast-rcnn);  iteration: number of finished iterations;
    more: further values that resuming needs.
    Raises OSError, with the file and the room that it needs, if it cannot be written.
    """
    state = {
        "objective": objective,
        "iteration": iteration,
        "config": detector.config.to_dict(),
        "detector": detector.state_dict(),
        **more,
    }
    # torch.save to an open file: to a path, it reports a full disk as an internal error of its archive.
    write_file(path, lambda file: torch.save(state, file), sum(map(_bytes, state.values())))


def best_or_last(path: Path) -> str:
    """Chooses the checkpoint of a training run: "best" if there is one, else "last"."""
    return "best" if (path / BEST).is_file() else "last"


def read_checkpoint(path: Path, which: str = "last") -> dict[str, Any]:
    """Reads what `save_state` wrote.

    path: the file, or the run folder;  which: the checkpoint of a run folder, "last" or "best" (there is no best one
    before the first validation).
    Raises FileNotFoundError if there is no checkpoint, ValueError if the file is not one.
    """
    file = path if path.is_file() else path / (BEST if which == "best" else NAME)
    if not file.is_file():
        missing = file if path.exists() else path
        raise FileNotFoundError(f"{missing} does not exist; faster-rcnn train --out {path} writes it")
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of error for a file that torch.save did not write
        raise ValueError(
            f"{file} is not a checkpoint or is damaged; choose a run that faster-rcnn train wrote"
        ) from error
    if not isinstance(state, dict) or not {"config", "detector"} <= state.keys():
        raise ValueError(f"{file} is not a checkpoint of this project; choose a run that faster-rcnn train wrote")
    return state


def build_detector(state: dict[str, Any]) -> FasterRCNN:
    """Builds the detector of a checkpoint that `read_checkpoint` returned."""
    detector = FasterRCNN(DetectorConfig.from_dict(state["config"]))
    detector.load_state_dict(state["detector"])
    return detector


def load_detector(path: Path, which: str = "last") -> FasterRCNN:
    """Loads the detector of a run folder or checkpoint file, in evaluation mode."""
    return build_detector(read_checkpoint(path, which)).eval()


def _bytes(value: Any) -> int:
    """The bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
