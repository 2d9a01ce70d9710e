"""Validation during training: its metrics and losses, and that it changes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.training.objectives import OBJECTIVES
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.validation import validate
from tests.faster_rcnn.lively import lively
from tests.faster_rcnn.training.pair import in_a_pair

OPTIONS = TrainingOptions(
    iterations=1, batch_size=1, learning_rate=0.1, warm_up=1, validation_pictures=2, mixed_precision=False
)


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return lively("compact", resize=ResizeRule(96, 192))


class WithoutObjects:
    """The first images of `shapes`, without their annotations."""

    labels = Shapes.labels

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return replace(
            Shapes("val")[index], boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), areas=None
        )

    def size(self, index: int) -> tuple[int, int]:
        return Shapes("val").size(index)

    def name(self, index: int) -> str:
        return Shapes("val").name(index)


@pytest.mark.parametrize(("objective", "metric"), [("joint", "AP50"), ("rpn", "AR")])
def test_each_objective_has_its_metrics_and_losses(detector: FasterRCNN, objective: str, metric: str) -> None:
    metrics, sheet = validate(detector, OBJECTIVES[objective], Shapes("val", 5), OPTIONS)
    assert metrics[metric] is not None
    losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
    assert "loss_rpn_box" in losses
    assert ("loss_head_box" in losses) == (objective == "joint")
    assert metrics["loss"] == pytest.approx(sum(losses.values()), abs=1e-4)
    assert sheet.width > 0


def test_validation_is_repeatable_and_leaves_the_detector_as_it_was(detector: FasterRCNN) -> None:
    detector.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    first, _ = validate(detector, OBJECTIVES["joint"], Shapes("val", 5), OPTIONS)
    second, _ = validate(detector, OBJECTIVES["joint"], Shapes("val", 5), OPTIONS)
    assert first == second
    assert detector.training
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])
    detector.eval()


@pytest.mark.contract("6.16")
def test_processes_share_the_images_and_the_first_one_has_the_same_result(detector: FasterRCNN, tmp_path: Path) -> None:
    """Five images: process 0 takes the first, third and fifth."""
    options = replace(OPTIONS, validation_pictures=5)
    alone = validate(detector, OBJECTIVES["joint"], Shapes("val", 9), options)
    assert alone is not None

    def act(rank: int) -> str:
        found = validate(detector, OBJECTIVES["joint"], Shapes("val", 9), options)
        return "nothing" if found is None else f"{found[0]} {found[1].tobytes() == alone[1].tobytes()}"

    assert in_a_pair(act, tmp_path) == [f"{alone[0]} True", "nothing"]


def test_images_without_objects_have_losses_but_no_metric(detector: FasterRCNN) -> None:
    metrics, _ = validate(detector, OBJECTIVES["joint"], WithoutObjects(), OPTIONS)
    assert metrics["AP50"] is None
    assert metrics["loss_head_box"] == 0
