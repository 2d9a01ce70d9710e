"""The schedules on a small detector: what each step trains, how runs are resumed, and the normalisation of targets."""

import os
import random
from dataclasses import replace
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.loader import Batch
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.checkpoint import NAME, load_detector, read_checkpoint
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import ProposalLimits, ProposalSampling, TargetNormalisation
from faster_rcnn.proposal_sources.table import ProposalTable
from faster_rcnn.training import schedules
from faster_rcnn.training.objectives import OBJECTIVES, fast_rcnn_losses
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.run import STEPS, begin_run, resume_run
from faster_rcnn.training.schedules import Setting, alternate, carry_out, measure_normalisation
from tests.faster_rcnn.training.pair import in_a_pair

OPTIONS = TrainingOptions(
    iterations=0, batch_size=2, learning_rate=0.001, warm_up=1, optimiser="adamw", validate_every=10,
    validation_pictures=2, checkpoint_every=1, workers=0,
)  # fmt: skip
ITERATIONS = (2, 3, 2, 2)
DATA = (Shapes("train", 12), Shapes("val", 3))


def build() -> FasterRCNN:
    torch.manual_seed(5)
    return FasterRCNN(
        replace(
            default_config("compact", Shapes.labels),
            rpn_channels=16,
            head_units=16,
            resize=ResizeRule(96, 192),
            training_proposals=ProposalLimits(100, 40),
            proposals=ProposalLimits(100, 20),
        )
    )


def setting(folder: Path) -> Setting:
    return Setting(folder, OPTIONS, *DATA, torch.device("cpu"), build)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FasterRCNN]:
    folder = tmp_path_factory.mktemp("alternating")
    detector, metrics = alternate(setting(folder), ITERATIONS)
    assert metrics["seconds"] > 0
    return folder, detector


def tensors(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """All tensors of a part: parameters and the running statistics of normalisations."""
    return {name: value for name, value in state.items() if name.startswith(f"{part}.")}


def equal(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> bool:
    return all(torch.equal(value, other[name]) for name, value in tensors(one, part).items())


def learned(parameters: dict[str, Tensor], before: dict[str, Tensor], part: str) -> bool:
    return all(
        not torch.equal(value, before[name])
        for name, value in tensors(parameters, part).items()
        if name.endswith("weight")
    )


def test_each_alternating_step_changes_only_its_own_layers(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    start = build().state_dict()
    one, two, three, four = (read_checkpoint(folder / step)["detector"] for step in STEPS)
    assert learned(one, start, "backbone")
    assert learned(one, start, "rpn")
    assert equal(one, start, "head")  # step 1 does not train the head
    assert learned(two, start, "backbone")  # starts from the pretrained one again
    assert not equal(two, one, "backbone")  # nothing is shared yet
    assert learned(two, start, "head")
    assert equal(two, start, "rpn")
    assert equal(three, two, "backbone")  # bit-equal, running statistics included
    assert learned(three, start, "rpn")
    assert learned(three, one, "rpn")  # a new RPN head, not that of step 1
    assert equal(four, two, "backbone")
    assert equal(four, three, "rpn")
    assert learned(four, two, "head")


def test_step_3_starts_with_a_new_rpn_and_step_4_with_the_head_of_step_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[dict[str, Tensor]] = []
    real = schedules.train

    def watched(detector: FasterRCNN, *rest: object, **more: object) -> object:
        starts.append({name: value.clone() for name, value in detector.state_dict().items()})
        return real(detector, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(schedules, "train", watched)
    alternate(setting(tmp_path), (1, 1, 1, 1))
    start = build().state_dict()
    two = read_checkpoint(tmp_path / STEPS[1])["detector"]
    assert equal(starts[0], start, "backbone")
    assert equal(starts[1], start, "backbone")
    assert equal(starts[2], start, "rpn")
    assert equal(starts[2], two, "backbone")
    assert equal(starts[3], two, "head")


def test_the_run_folder_of_an_alternating_run_holds_one_assembled_detector(finished: tuple[Path, FasterRCNN]) -> None:
    folder, detector = finished
    four = read_checkpoint(folder / STEPS[3])["detector"]
    for which in ("last", "best"):
        whole = load_detector(folder, which)
        assert all(torch.equal(value, four[name]) for name, value in whole.state_dict().items())
    assert read_checkpoint(folder)["iteration"] == sum(ITERATIONS)
    assert all(torch.equal(value, four[name]) for name, value in detector.state_dict().items())


def test_steps_2_and_4_train_on_the_proposals_of_the_step_before(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    for step in (STEPS[0], STEPS[2]):
        table = ProposalTable.load(folder / step / "proposals-train.npz")
        assert set(table) == {DATA[0].name(index) for index in range(len(DATA[0]))}
        assert max(len(regions.boxes) for regions in table.values()) == 40  # what training_proposals keeps after NMS


def test_an_interrupted_alternating_run_resumes_in_its_step_with_the_same_result(
    finished: tuple[Path, FasterRCNN], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0

    def stopping(detector: FasterRCNN, batch: Batch, mixed_precision: bool) -> dict[str, Tensor]:
        nonlocal done
        done += detector.training
        if done == 3:
            raise KeyboardInterrupt
        return fast_rcnn_losses(detector, batch, mixed_precision)

    with monkeypatch.context() as patch:
        patch.setitem(OBJECTIVES, "fast-rcnn", replace(OBJECTIVES["fast-rcnn"], losses=stopping))
        with pytest.raises(KeyboardInterrupt):  # in the third batch of step 2
            alternate(setting(tmp_path), ITERATIONS)
    assert read_checkpoint(tmp_path / STEPS[1])["iteration"] == 2
    assert not (tmp_path / STEPS[2]).exists()
    resumed, _ = alternate(setting(tmp_path), ITERATIONS)
    folder, whole = finished
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for step in STEPS:
        assert (tmp_path / step / "losses.csv").read_text() == (folder / step / "losses.csv").read_text()


@pytest.mark.contract("6.16")
def test_two_processes_train_alternately_in_the_folder_of_the_first_and_from_its_weights(tmp_path: Path) -> None:
    """The second process begins with other weights. When all is repeated, the finished steps are only loaded."""

    def act(rank: int) -> str:
        def build_other() -> FasterRCNN:
            detector = build()
            if rank:
                torch.nn.init.constant_(detector.head.cls_score.weight, 0.5)
            return detector

        results = [alternate(replace(setting(Path("run")), build=build_other), ITERATIONS) for _ in range(2)]
        digests = {
            sha256(b"".join(one.numpy().tobytes() for one in detector.state_dict().values())).hexdigest()
            for detector, _ in results
        }
        return f"{len(digests)} {digests.pop()} {Path('run').exists()}"

    (tmp_path / "0" / "run").mkdir(parents=True)
    first, second = in_a_pair(act, tmp_path)
    assert first.startswith("1 ")
    assert first.endswith(" True")
    assert second == first.replace("True", "False")


SHAPES = {
    "data": "shapes", "min_size": 96, "max_size": 192, "batch_size": 2, "iterations": 12, "validate_every": 4,
    "checkpoint_every": 3, "validation_pictures": 2, "augmentations": ["flip", "scale-jitter", "photometric"],
    "workers": 1,
}  # fmt: skip


def begin_and_carry_out(folder: Path, begun: Event | None = None) -> None:
    record = begin_run(folder, SHAPES, "faster-rcnn train …", "cpu")
    if begun is not None:
        begun.set()
    carry_out(record, folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    begin_and_carry_out(folder)
    return folder


@pytest.fixture
def random_seed() -> int:
    """Set KILL_SEED to repeat a failure; pytest prints the seed of a failed test."""
    seed = int(os.environ.get("KILL_SEED") or random.randrange(10**6))
    print(f"KILL_SEED={seed}")
    return seed


def test_a_run_killed_at_a_random_moment_and_resumed_equals_an_unbroken_one(
    unbroken: Path, random_seed: int, tmp_path: Path
) -> None:
    """SIGKILL may come before the first checkpoint, between two, or during any write."""
    folder = tmp_path / "run"
    context = get_context("spawn")
    begun = context.Event()
    process = context.Process(target=begin_and_carry_out, args=(folder, begun))
    process.start()
    assert begun.wait(timeout=120)
    process.join(timeout=random.Random(random_seed).uniform(0, read_checkpoint(unbroken)["seconds"]))
    process.kill()
    process.join()
    if not (folder / "run.json").exists():
        begin_and_carry_out(folder)
    elif not (folder / NAME).exists() or read_checkpoint(folder)["iteration"] < SHAPES["iterations"]:
        carry_out(resume_run(folder, {}, ""), folder, torch.device("cpu"))
    for which in ("last", "best"):
        one, other = read_checkpoint(unbroken, which), read_checkpoint(folder, which)
        assert one["iteration"] == other["iteration"]
        for name, value in one["detector"].items():
            assert torch.equal(value, other["detector"][name]), (which, name)
    for name in ("losses.csv", "validation.jsonl"):
        assert (folder / name).read_text() == (unbroken / name).read_text()


class Images:
    """A data set of the given samples."""

    labels = ("thing",)

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def size(self, index: int) -> tuple[int, int]:
        return self.samples[index].image.shape[0], self.samples[index].image.shape[1]

    def name(self, index: int) -> str:
        return str(index)


def test_targets_of_foreground_proposals_are_measured() -> None:
    """Proposals of 10 × 10, shifted from objects of 10 × 10 by ±1 in x: dx = ±0.1, the rest is 0."""
    image = np.zeros((100, 100, 3), np.uint8)
    objects = np.array([[20, 20, 30, 30], [60, 60, 70, 70]], np.float32)
    proposals = np.array([[19, 20, 29, 30], [61, 60, 71, 70], [0, 0, 5, 5]], np.float32)
    sample = Sample(image, objects, np.zeros(2, np.int64), proposals=proposals)
    measured = measure_normalisation(Images(sample), ProposalSampling())
    assert measured.means == pytest.approx((0, 0, 0, 0))
    assert measured.stds[0] == pytest.approx(
        0.1 * 2**0.5
    )  # two values, ±0.1: the squares 0.01 + 0.01 divided by n - 1 = 1
    assert measured.stds[1:] == (0.001, 0.001, 0.001)  # at least 0.001, so that nothing is divided by zero
    deltas = torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(measured.undo(measured.apply(deltas)), deltas)


def test_targets_cannot_be_measured_if_no_proposal_covers_an_object() -> None:
    image, nothing = np.zeros((100, 100, 3), np.uint8), np.zeros((0, 4), np.float32)
    sample = Sample(image, nothing, np.zeros(0, np.int64), proposals=np.array([[0, 0, 9, 9]], np.float32))
    with pytest.raises(ValueError, match="no targets to measure; use another source"):
        measure_normalisation(Images(sample), ProposalSampling())


def test_the_default_normalisation_is_that_of_the_reference_code() -> None:
    rule = TargetNormalisation()
    assert rule.apply(torch.tensor([0.1, 0.2, 0.2, 0.4])).tolist() == pytest.approx([1, 2, 1, 2])
