"""Checkpoints: everything that an interrupted run needs to go on as if it had not been.

Of the random generators only torch's is used while training; the order of the pictures follows from the seed.
"""

from pathlib import Path
from typing import Any

import torch

from faster_rcnn.config import DetectorConfig
from faster_rcnn.detector import FasterRCNN

NAME = "checkpoint.pt"


def save_checkpoint(
    folder: Path, iteration: int, seconds: float, detector: FasterRCNN, optimiser: torch.optim.Optimizer
) -> None:
    """Writes `folder/checkpoint.pt`, aside first, so that a crash leaves the former one whole.

    iteration, seconds: how many are done and how long the run has taken so far, over all its parts.
    """
    state = {
        "iteration": iteration,
        "seconds": seconds,
        "config": detector.config.to_dict(),
        "detector": detector.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }
    aside = folder / f"{NAME}.part"
    torch.save(state, aside)
    aside.replace(folder / NAME)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote; `path` is the file or its run folder.

    Raises FileNotFoundError that says where a checkpoint would come from.
    """
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; scripts/train.py --out {path} writes it")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def load_detector(path: Path) -> FasterRCNN:
    """The detector of a run folder or checkpoint file, ready to infer."""
    state = read_checkpoint(path)
    detector = FasterRCNN(DetectorConfig.from_dict(state["config"]))
    detector.load_state_dict(state["detector"])
    return detector.eval()


def restore(state: dict[str, Any], detector: FasterRCNN, optimiser: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's state back, torch's random generators included."""
    detector.load_state_dict(state["detector"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
