"""Runs as others find them: which run a folder or a checkpoint belongs to, and whether it has a detector to give."""

from pathlib import Path
from typing import Any

from faster_rcnn.detector.checkpoint import NAME, read_checkpoint
from faster_rcnn.training.alternating import STEPS
from faster_rcnn.training.recipe import RECORD, read_run


def run_folder(target: Path) -> Path:
    """The folder of the run that a checkpoint, a run or a step of alternating training belongs to."""
    folder = target.parent if target.is_file() else target
    return folder.parent if folder.name in STEPS else folder


def record_of(target: Path) -> dict[str, Any]:
    """The record of the run that `target` belongs to; empty for what lies in no run's folder, as a published version.

    Raises FileNotFoundError if `target` is not there, ValueError if it is a run that is not finished.
    """
    if not target.exists():
        raise FileNotFoundError(f"{target} is not there; scripts/train.py --out {target} writes it")
    folder = run_folder(target)
    if not (folder / RECORD).is_file():
        return {}
    check_finished(target)
    return read_run(folder)


def check_finished(folder: Path) -> None:
    """Raises ValueError for an alternating run that has not put its detector together yet, naming what is not done."""
    if not (folder / RECORD).is_file() or (folder / NAME).is_file():
        return
    run = read_run(folder)
    if run.get("schedule") != "alternating":
        return
    undone = [
        step for step, length in zip(STEPS, run["step_iterations"], strict=True) if not _done(folder, step, length)
    ]
    what = f"has not done its step {undone[0]} yet" if undone else "has not put its detector together yet"
    raise ValueError(f"{folder} {what}; go on with scripts/train.py --out {folder} --resume")


def proposals_of_step(target: Path) -> tuple[Path, Path] | None:
    """The step of alternating training whose proposals a step was trained on, and those for the validation split.

    target: a step's folder or a checkpoint in it.  None if it is no step that takes proposals.
    """
    step = target.parent if target.is_file() else target
    if step.name not in (STEPS[1], STEPS[3]):
        return None
    before = step.parent / STEPS[STEPS.index(step.name) - 1]
    return before, before / "proposals-val.npz"


def _done(folder: Path, step: str, iterations: int) -> bool:
    return (folder / step / NAME).is_file() and read_checkpoint(folder / step)["iteration"] >= iterations
