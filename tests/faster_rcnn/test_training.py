"""The loop on a small detector and a handful of pictures: it learns, logs, resumes exactly."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from faster_rcnn.config import DetectorConfig, preset
from faster_rcnn.data.loader import Batch, training_batches
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.proposals import ProposalLimits
from faster_rcnn.resize import ResizeRule
from faster_rcnn.training.checkpoint import load_detector, read_checkpoint
from faster_rcnn.training.joint import joint_losses
from faster_rcnn.training.loop import TrainingOptions, learning_rate, train

OPTIONS = TrainingOptions(
    iterations=6, batch_size=2, learning_rate=0.01, warm_up=2, validate_every=6, validation_pictures=3,
    checkpoint_every=3, workers=0, mixed_precision=False,
)  # fmt: skip


def small_config() -> DetectorConfig:
    return replace(
        preset("compact", Shapes.labels),
        rpn_channels=16,
        head_units=16,
        head_dropout=0.2,  # draws random numbers that a resumed run must draw again
        resize=ResizeRule(96, 192),
        training_proposals=ProposalLimits(100, 20),
        proposals=ProposalLimits(100, 20),
    )


def run(folder: Path, options: TrainingOptions, resume: bool = False) -> FasterRCNN:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    detector = load_detector(folder) if resume else FasterRCNN(small_config())
    train(detector, joint_losses(False), Shapes("train", 40), Shapes("val", 6), options, folder, resume)
    return detector


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FasterRCNN]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(folder, OPTIONS)


def stop_after(iterations: int) -> object:
    done = 0

    def losses(detector: FasterRCNN, batch: Batch) -> dict[str, Tensor]:
        nonlocal done
        if done == iterations:
            raise KeyboardInterrupt
        done += 1
        return detector.losses(batch.images, batch.sizes, batch.truth)

    return losses


def test_a_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    finished: tuple[Path, FasterRCNN], tmp_path: Path
) -> None:
    whole_folder, whole = finished
    torch.manual_seed(5)
    broken = FasterRCNN(small_config())
    with pytest.raises(KeyboardInterrupt):  # in the fifth batch, two after the checkpoint
        train(broken, stop_after(4), Shapes("train", 40), Shapes("val", 6), OPTIONS, tmp_path)  # type: ignore[arg-type]
    assert read_checkpoint(tmp_path)["iteration"] == 3
    resumed = run(tmp_path, OPTIONS, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert (tmp_path / "losses.csv").read_text() == (whole_folder / "losses.csv").read_text()


def test_a_run_leaves_its_log_pictures_and_metrics(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    with (folder / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == list(range(6))
    assert set(rows[0]) == {
        "iteration", "learning_rate", "rpn_classification", "rpn_box", "head_classification", "head_box"
    }  # fmt: skip
    validation = json.loads((folder / "validation.jsonl").read_text())
    assert validation["iteration"] == 6
    assert validation["pictures"] == 3
    for picture in (folder / "losses.png", folder / "predictions" / "000006.jpg"):
        with Image.open(picture) as image:
            image.load()


def test_a_checkpoint_builds_the_detector_again(finished: tuple[Path, FasterRCNN]) -> None:
    folder, detector = finished
    again = load_detector(folder)
    assert again.config == detector.config
    images, sizes = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8), torch.tensor([[96, 128]])
    with torch.no_grad():
        torch.testing.assert_close(again(images, sizes), detector.eval()(images, sizes))


def test_a_finished_run_is_not_resumed(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    with pytest.raises(ValueError, match="has done its 6 iterations"):
        run(folder, OPTIONS, resume=True)


def test_a_missing_checkpoint_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint.pt is not there; scripts/train.py --out"):
        load_detector(tmp_path)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    options = replace(OPTIONS, iterations=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate(options, iteration) for iteration in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)  # half of the cosine
    assert rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_mixed_precision_gives_nearly_the_same_losses() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(small_config()).train()
    batch = next(training_batches(Shapes("train", 40), ResizeRule(96, 192), 16, 2, 0, 0, 0))
    values = []
    for mixed in (False, True):
        torch.manual_seed(1)
        values.append(detector.losses(batch.images, batch.sizes, batch.truth, mixed))
    for name in ("rpn_classification", "head_classification"):
        assert values[1][name].item() == pytest.approx(values[0][name].item(), rel=0.1)
