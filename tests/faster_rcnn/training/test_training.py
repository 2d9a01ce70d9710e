"""The loop on a small detector and a handful of images: it learns, logs, resumes exactly."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.loader import Batch, Loading, training_batches
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.checkpoint import load_detector, read_checkpoint
from faster_rcnn.detector.config import DetectorConfig, preset
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.evaluation import torch_predictor
from faster_rcnn.graph.comparison import Boxes, Tolerance, compare
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.publish import Measurement, publish
from faster_rcnn.training.loop import train
from faster_rcnn.training.objectives import joint_losses
from faster_rcnn.training.options import TrainingOptions, build_optimiser, learning_rate
from faster_rcnn.training.tasks import TASKS, Task
from tests.faster_rcnn.lively import lively

JOINT = TASKS["joint"]
# As the command line has it: AdamW, mixed precision where the machine has it, a process that prepares images.
OPTIONS = TrainingOptions(
    iterations=6, batch_size=2, learning_rate=0.001, warm_up=2, optimiser="adamw", validate_every=2,
    validation_pictures=3, checkpoint_every=3, workers=1, augmentations=("flip", "scale-jitter", "photometric"),
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
    train(detector, JOINT, Shapes("train", 40), Shapes("val", 6), options, folder, resume)
    return detector


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FasterRCNN]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(folder, OPTIONS)


def stop_after(iterations: int) -> Task:
    done = 0

    def losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> dict[str, Tensor]:
        nonlocal done
        if detector.training:
            if done == iterations:
                raise KeyboardInterrupt
            done += 1
        return joint_losses(detector, batch, mixed_precision)

    return replace(JOINT, losses=losses)


def test_a_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    finished: tuple[Path, FasterRCNN], tmp_path: Path
) -> None:
    whole_folder, whole = finished
    torch.manual_seed(5)
    broken = FasterRCNN(small_config())
    with pytest.raises(KeyboardInterrupt):  # in the sixth batch: two batches and a validation after the checkpoint
        train(broken, stop_after(5), Shapes("train", 40), Shapes("val", 6), OPTIONS, tmp_path)
    assert read_checkpoint(tmp_path)["iteration"] == 3
    resumed = run(tmp_path, OPTIONS, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert (tmp_path / "losses.csv").read_text() == (whole_folder / "losses.csv").read_text()
    assert torch.equal(
        load_detector(tmp_path, "best").head.fc6.weight, load_detector(whole_folder, "best").head.fc6.weight
    )
    for folder in (tmp_path, whole_folder):
        lines = (folder / "validation.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [2, 4, 6]


def test_a_run_leaves_its_log_images_and_metrics(finished: tuple[Path, FasterRCNN]) -> None:
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


def test_a_step_cuts_the_rate_to_a_tenth_after_three_quarters() -> None:
    """Section 3.1.3: 0.001 for 60,000 mini-batches, 0.0001 for the next 20,000."""
    options = replace(OPTIONS, iterations=80000, warm_up=1, learning_rate=0.001, decay="step")
    assert learning_rate(options, 59000) == 0.001
    assert learning_rate(options, 61000) == pytest.approx(0.0001)


def test_sgd_learns_biases_twice_as_fast_and_decays_none() -> None:
    optimiser = build_optimiser(FasterRCNN(small_config()), replace(OPTIONS, optimiser="sgd"))
    weights, others = optimiser.param_groups
    assert (weights["weight_decay"], weights["factor"]) == (0.0005, 1.0)
    assert (others["weight_decay"], others["factor"]) == (0.0, 2.0)
    assert all(one.ndim == 1 for one in others["params"])


def test_mixed_precision_gives_nearly_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 keeps 8 bits: features differ by about a percent, and by nothing if it is not used at all."""
    monkeypatch.setattr("faster_rcnn.training.objectives.autocast_dtype", lambda _: torch.bfloat16)
    torch.manual_seed(0)
    detector = FasterRCNN(small_config()).eval()
    batch = next(training_batches(Shapes("train", 40), ResizeRule(96, 192), 16, Loading(2, seed=0)))
    features: list[Tensor] = []
    hook = detector.backbone.register_forward_hook(lambda _, __, output: features.append(output[0]))
    for mixed in (False, True):
        losses = joint_losses(detector, batch, mixed)
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    hook.remove()
    full, reduced = features
    assert (full.dtype, reduced.dtype) == (torch.float32, torch.bfloat16)
    error = (full - reduced.float()).norm() / full.norm()
    assert 1e-4 < error.item() < 0.05


def test_a_diverged_step_is_never_saved(tmp_path: Path) -> None:
    def losses(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> dict[str, Tensor]:
        real = joint_losses(detector, batch, mixed_precision)
        finite_with_infinite_gradient = (detector.head.fc6.weight * 0).abs().sqrt().sum()
        return {**real, "head_box": real["head_box"] + finite_with_infinite_gradient}

    torch.manual_seed(5)
    detector = FasterRCNN(small_config())
    options = replace(OPTIONS, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"gradients of norm .* first step .*senseless boxes"):
        train(detector, replace(JOINT, losses=losses), Shapes("train", 40), Shapes("val", 6), options, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())


def test_both_predictors_answer_in_the_pixels_of_the_original(tmp_path: Path) -> None:
    """A detector that finds objects everywhere, in PyTorch and published: the same boxes on odd-sized images."""
    detector = lively("compact")
    pictures = [Shapes("test")[index].image for index in range(4)]
    folder = publish(
        detector,
        tmp_path,
        "toy",
        1,
        training={},
        images=pictures,
        measurement=Measurement(Shapes("test", 2), "shapes/test"),
    )
    in_pytorch, in_onnx = torch_predictor(detector), onnx_predictor(folder)
    for height, width in ((301, 517), (200, 100), (1000, 640)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        one, other = in_pytorch(sample), in_onnx(sample)
        assert len(one.boxes) > 5
        assert one.boxes.max() > 0.9 * max(height, width)
        assert (one.boxes[:, 0::2] <= width).all()
        assert (one.boxes[:, 1::2] <= height).all()
        answers = [Boxes(found.boxes, found.scores, found.labels, cut=0.02) for found in (one, other)]
        difference = compare(answers[0], answers[1], Tolerance(0.1 * height / 96, 1e-3))
        assert difference.unmatched == 0
