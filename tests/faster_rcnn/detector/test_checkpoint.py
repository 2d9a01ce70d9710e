"""Checkpoints: what is read, what is refused, and whether the best or the last is used."""

from pathlib import Path

import pytest
import torch

from faster_rcnn.detector.checkpoint import BEST, NAME, best_or_last, load_detector, read_checkpoint, save_state
from faster_rcnn.detector.resize import ResizeRule
from tests.faster_rcnn.lively import lively


def test_a_missing_checkpoint_is_reported_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint.pt does not exist; faster-rcnn train --out"):
        load_detector(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; faster-rcnn train --out .*nowhere writes it"):
        load_detector(tmp_path / "nowhere")


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(
        ValueError, match="is not a checkpoint or is damaged; choose a run that faster-rcnn train wrote"
    ):
        read_checkpoint(file)
    torch.save({"weights": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="is not a checkpoint of this project"):
        read_checkpoint(tmp_path)


def test_the_best_checkpoint_is_preferred_and_no_temporary_file_remains(tmp_path: Path) -> None:
    detector = lively("compact", resize=ResizeRule(64, 128))
    save_state(tmp_path / NAME, detector, "joint", 7, metrics={"AP50": 0.5})
    assert best_or_last(tmp_path) == "last"
    save_state(tmp_path / BEST, detector, "joint", 5)
    assert best_or_last(tmp_path) == "best"
    assert read_checkpoint(tmp_path, "best")["iteration"] == 5
    last = read_checkpoint(tmp_path)
    assert (last["iteration"], last["objective"], last["metrics"]) == (7, "joint", {"AP50": 0.5})
    assert {file.name for file in tmp_path.iterdir()} == {NAME, BEST}
    again = load_detector(tmp_path)
    assert not again.training
    assert again.config == detector.config
