"""Which run a folder belongs to, and that one which is not finished says how it goes on."""

import json
from pathlib import Path

import pytest
import torch

from faster_rcnn.detector.checkpoint import NAME, save_state
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training.alternating import STEPS
from faster_rcnn.training.runs import check_finished, proposals_of_step, record_of


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(default_config("compact", ("thing",)))


def begin(folder: Path, schedule: str) -> Path:
    folder.mkdir(parents=True)
    record = {"data": "shapes", "schedule": schedule, "step_iterations": [4, 2, 4, 2]}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_an_alternating_run_names_the_step_that_is_not_done(tmp_path: Path, detector: FasterRCNN) -> None:
    folder = begin(tmp_path / "run", "alternating")
    goes_on = f"go on with scripts/train.py --out {folder} --resume"
    with pytest.raises(ValueError, match=f"has not done its step 1-rpn yet; {goes_on}"):
        check_finished(folder)
    for step, iteration in ((STEPS[0], 4), (STEPS[1], 1)):  # of 4 and of 2
        (folder / step).mkdir()
        save_state(folder / step / NAME, detector, "rpn", iteration)
    with pytest.raises(ValueError, match=f"has not done its step 2-fast-rcnn yet; {goes_on}"):
        record_of(folder)
    for step in STEPS:
        (folder / step).mkdir(exist_ok=True)
        save_state(folder / step / NAME, detector, "rpn", 4)
    with pytest.raises(ValueError, match=f"has not put its detector together yet; {goes_on}"):
        record_of(folder)
    save_state(folder / NAME, detector, "joint", 12)
    assert record_of(folder)["schedule"] == "alternating"


def test_other_runs_are_left_to_their_checkpoint(tmp_path: Path) -> None:
    assert record_of(begin(tmp_path / "run", "joint"))["schedule"] == "joint"


def test_a_checkpoint_and_a_step_have_the_record_of_their_run(tmp_path: Path, detector: FasterRCNN) -> None:
    folder = begin(tmp_path / "run", "alternating")
    (folder / STEPS[1]).mkdir()
    save_state(folder / STEPS[1] / NAME, detector, "fast-rcnn", 2)
    save_state(folder / NAME, detector, "joint", 12)
    for target in (folder, folder / NAME, folder / STEPS[1], folder / STEPS[1] / NAME):
        assert record_of(target)["data"] == "shapes"
    (folder / NAME).rename(tmp_path / "taken-out.pt")
    assert record_of(tmp_path / "taken-out.pt") == {}
    with pytest.raises(FileNotFoundError, match=r"nowhere is not there; scripts/train.py --out .*nowhere writes it"):
        record_of(tmp_path / "nowhere")


def test_only_steps_2_and_4_take_proposals_and_from_the_step_before(tmp_path: Path) -> None:
    found = [proposals_of_step(tmp_path / step) for step in STEPS]
    assert [found[0], found[2], proposals_of_step(tmp_path)] == [None, None, None]
    assert found[1] == (tmp_path / "1-rpn", tmp_path / "1-rpn" / "proposals-val.npz")
    assert found[3] == (tmp_path / "3-rpn", tmp_path / "3-rpn" / "proposals-val.npz")
