"""The loop on a small detector and a few images: it trains, logs, and resumes exactly."""

import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from faster_rcnn.commands.failures import in_one_line
from faster_rcnn.data.loader import Batch
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.checkpoint import load_detector, read_checkpoint
from faster_rcnn.detector.config import DetectorConfig, default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import ProposalLimits
from faster_rcnn.training.loop import train
from faster_rcnn.training.objectives import OBJECTIVES, Objective, joint_losses
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.stopping import Stopped

JOINT = OBJECTIVES["joint"]
# The defaults of the command: AdamW, mixed precision if the machine has it, a worker process that prepares images.
OPTIONS = TrainingOptions(
    iterations=6, batch_size=2, learning_rate=0.001, warm_up=2, optimiser="adamw", validate_every=2,
    validation_pictures=3, checkpoint_every=3, workers=1, augmentations=("flip", "scale-jitter", "photometric"),
)  # fmt: skip


def small_config() -> DetectorConfig:
    return replace(
        default_config("compact", Shapes.labels),
        rpn_channels=16,
        head_units=16,
        head_dropout=0.2,  # a resumed run must draw the same random numbers again
        resize=ResizeRule(96, 192),
        training_proposals=ProposalLimits(100, 20),
        proposals=ProposalLimits(100, 20),
    )


def train_in(folder: Path, options: TrainingOptions, resume: bool = False) -> FasterRCNN:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    detector = load_detector(folder) if resume else FasterRCNN(small_config())
    train(detector, JOINT, Shapes("train", 40), Shapes("val", 6), options, folder, resume)
    return detector


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FasterRCNN]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train_in(folder, OPTIONS)


def stop_after(iterations: int) -> Objective:
    done = 0

    def losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> dict[str, Tensor]:
        nonlocal done
        if detector.training:
            if done == iterations:
                raise KeyboardInterrupt
            done += 1
        return joint_losses(detector, batch, mixed_precision)

    return replace(JOINT, losses=losses)


def test_an_interrupted_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    finished: tuple[Path, FasterRCNN], tmp_path: Path
) -> None:
    whole_folder, whole = finished
    torch.manual_seed(5)
    broken = FasterRCNN(small_config())
    with pytest.raises(KeyboardInterrupt):  # in the sixth batch, two batches and a validation after the checkpoint
        train(broken, stop_after(5), Shapes("train", 40), Shapes("val", 6), OPTIONS, tmp_path)
    assert read_checkpoint(tmp_path)["iteration"] == 3
    resumed = train_in(tmp_path, OPTIONS, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert (tmp_path / "losses.csv").read_text() == (whole_folder / "losses.csv").read_text()
    assert torch.equal(
        load_detector(tmp_path, "best").head.fc6.weight, load_detector(whole_folder, "best").head.fc6.weight
    )
    for folder in (tmp_path, whole_folder):
        lines = (folder / "validation.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [2, 4, 6]


def test_a_run_writes_its_log_images_and_metrics(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    with (folder / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == list(range(6))
    assert set(rows[0]) == {
        "iteration", "learning_rate", "rpn_classification", "rpn_box", "head_classification", "head_box"
    }  # fmt: skip
    validation = json.loads((folder / "validation.jsonl").read_text().splitlines()[-1])
    assert validation["iteration"] == 6
    assert validation["pictures"] == 3
    assert validation["loss"] == pytest.approx(sum(validation[f"loss_{name}"] for name in list(rows[0])[2:]), abs=1e-4)
    assert validation["VOC_mAP"] is not None
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/rpn_box")] == list(range(6))
    assert events.Scalars("validation/AP50")[-1].value == pytest.approx(validation["AP50"])
    for file in (folder / "losses.png", folder / "predictions" / "000006.jpg"):
        with Image.open(file) as image:
            image.load()


def test_a_checkpoint_rebuilds_the_same_detector(finished: tuple[Path, FasterRCNN]) -> None:
    folder, detector = finished
    again = load_detector(folder)
    assert again.config == detector.config
    images, sizes = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8), torch.tensor([[96, 128]])
    with torch.no_grad():
        torch.testing.assert_close(again(images, sizes), detector.eval()(images, sizes))


def test_a_finished_run_cannot_be_resumed(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    with pytest.raises(ValueError, match="has done its 6 iterations"):
        train_in(folder, OPTIONS, resume=True)


def test_a_diverged_step_is_neither_applied_nor_saved(tmp_path: Path) -> None:
    def losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> dict[str, Tensor]:
        real = joint_losses(detector, batch, mixed_precision)
        finite_with_infinite_gradient = (detector.head.fc6.weight * 0).abs().sqrt().sum()
        return {**real, "head_box": real["head_box"] + finite_with_infinite_gradient}

    torch.manual_seed(5)
    detector = FasterRCNN(small_config())
    options = replace(OPTIONS, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"gradients of norm .* first step .*wrong boxes"):
        train(detector, replace(JOINT, losses=losses), Shapes("train", 40), Shapes("val", 6), options, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


def test_a_frozen_backbone_keeps_its_weights_and_statistics(tmp_path: Path) -> None:
    torch.manual_seed(5)
    detector = FasterRCNN(small_config())
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    options = replace(OPTIONS, iterations=1, workers=0, trainable_from="fc6", frozen_statistics=True)
    train(detector, JOINT, Shapes("train", 40), Shapes("val", 2), options, tmp_path)
    after = detector.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"rpn", "head"}


def test_the_micro_batches_of_a_batch_add_up_to_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """With frozen normalisation statistics, one step is the same up to rounding."""
    options = replace(OPTIONS, iterations=1, workers=0, optimiser="sgd", frozen_statistics=True, mixed_precision=False)
    results = []
    for micro_batches in (1, 2):
        torch.manual_seed(5)
        detector = FasterRCNN(replace(small_config(), head_dropout=0.0))
        folder = tmp_path / str(micro_batches)
        folder.mkdir()
        train(
            detector, JOINT, Shapes("train", 40), Shapes("val", 2), replace(options, accumulate=micro_batches), folder
        )
        results.append(detector.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def acting_after(iterations: int, act: Callable[[], object]) -> Objective:
    """The joint objective, which calls `act` once, in the iteration after `iterations`."""
    done = 0

    def losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> dict[str, Tensor]:
        nonlocal done
        if detector.training:
            if done == iterations:
                act()
            done += 1
        return joint_losses(detector, batch, mixed_precision)

    return replace(JOINT, losses=losses)


@pytest.mark.contract("6.9")
def test_sigterm_saves_the_iteration_and_the_resumed_run_equals_an_unbroken_one(
    finished: tuple[Path, FasterRCNN], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    stopped = FasterRCNN(small_config())
    objective = acting_after(4, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the fifth iteration
    with pytest.raises(Stopped, match="stopped after iteration 5, which is saved") as end:
        train(stopped, objective, Shapes("train", 40), Shapes("val", 6), OPTIONS, tmp_path)
    assert end.value.exit_code == 143
    assert read_checkpoint(tmp_path)["iteration"] == 5
    resumed = train_in(tmp_path, OPTIONS, resume=True)
    for name, value in finished[1].state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert (tmp_path / "losses.csv").read_text() == (finished[0] / "losses.csv").read_text()


@pytest.mark.contract("6.9")
def test_a_killed_worker_process_ends_the_run_at_once_and_the_checkpoint_stays(tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())  # of tests that failed on purpose

    def kill_worker() -> None:
        (worker,) = set(multiprocessing.active_children()) - others
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)

    torch.manual_seed(5)
    options = replace(OPTIONS, iterations=1000, validate_every=10_000, checkpoint_every=2)
    objective = acting_after(3, kill_worker)
    with pytest.raises(RuntimeError) as end:
        train(FasterRCNN(small_config()), objective, Shapes("train", 40), Shapes("val", 6), options, tmp_path)
    assert "a process that prepares images was killed" in (in_one_line(end.value) or "")
    assert read_checkpoint(tmp_path)["iteration"] in range(2, 12, 2)  # batches that were ready are still trained on
    assert not list(tmp_path.rglob(".*.part"))
