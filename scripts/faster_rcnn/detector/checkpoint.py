"""Checkpoints: everything that an interrupted run needs to go on as if it had not been.

No state of a random generator is among it: what is drawn in an iteration follows from the run's seed and the number of
the iteration, so there is none to lose.
"""

from pathlib import Path
from typing import Any

import torch

from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN

NAME = "checkpoint.pt"  # the last state, from which a run goes on
BEST = "best.pt"  # the detector that did best in validation


def save_state(path: Path, detector: FasterRCNN, objective: str, iteration: int, **more: Any) -> None:
    """Writes a checkpoint, aside first, so that a crash leaves the former one whole.

    objective: the name of a task, what of the detector was trained;  iteration: how many are done.
    """
    state = {
        "objective": objective,
        "iteration": iteration,
        "config": detector.config.to_dict(),
        "detector": detector.state_dict(),
        **more,
    }
    aside = path.with_name(f"{path.name}.part")
    torch.save(state, aside)
    aside.replace(path)


def best_or_last(path: Path) -> str:
    """Which state of a run is the one to use: the best, if it has one."""
    return "best" if (path / BEST).is_file() else "last"


def read_checkpoint(path: Path, which: str = "last") -> dict[str, Any]:
    """A state that `save_state` wrote; `path` is the file or its run folder.

    which: "last", or "best" for the detector that did best in validation, which a run without validation lacks.
    Raises FileNotFoundError that says where a checkpoint would come from, ValueError if the file is something else.
    """
    file = path if path.is_file() else path / (BEST if which == "best" else NAME)
    if not file.is_file():
        missing = file if path.exists() else path
        raise FileNotFoundError(f"{missing} is not there; scripts/train.py --out {path} writes it")
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a file that is not its own
        raise ValueError(
            f"{file} is not a checkpoint, or a broken one; name a run that scripts/train.py made"
        ) from error
    if not isinstance(state, dict) or not {"config", "detector"} <= state.keys():
        raise ValueError(f"{file} is not a checkpoint of this project; name a run that scripts/train.py made")
    return state


def build_detector(state: dict[str, Any]) -> FasterRCNN:
    """The detector of a checkpoint's state."""
    detector = FasterRCNN(DetectorConfig.from_dict(state["config"]))
    detector.load_state_dict(state["detector"])
    return detector


def load_detector(path: Path, which: str = "last") -> FasterRCNN:
    """The detector of a run folder or checkpoint file, ready to infer."""
    return build_detector(read_checkpoint(path, which)).eval()
