"""Four-step alternating training on a small detector: what each step changes, what it leaves, how it is resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from faster_rcnn.data.loader import Batch
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.checkpoint import load_detector, read_checkpoint
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.proposal_sources.table import ProposalTable
from faster_rcnn.training import alternating
from faster_rcnn.training.alternating import STEPS, alternate, step_iterations
from faster_rcnn.training.objectives import fast_rcnn_losses
from faster_rcnn.training.options import TrainingOptions
from faster_rcnn.training.tasks import TASKS

OPTIONS = TrainingOptions(
    iterations=0, batch_size=2, learning_rate=0.001, warm_up=1, optimiser="adamw", validate_every=10,
    validation_pictures=2, checkpoint_every=1, workers=0,
)  # fmt: skip
ITERATIONS = (2, 3, 2, 2)
DATA = (Shapes("train", 12), Shapes("val", 3))


def fresh() -> FasterRCNN:
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FasterRCNN]:
    folder = tmp_path_factory.mktemp("alternating")
    detector, metrics = alternate(fresh, *DATA, OPTIONS, ITERATIONS, folder)
    assert metrics["seconds"] > 0
    return folder, detector


def tensors(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Parameters and the running statistics of normalisations, all that a part is made of."""
    return {name: value for name, value in state.items() if name.startswith(f"{part}.")}


def equal(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> bool:
    return all(torch.equal(value, other[name]) for name, value in tensors(one, part).items())


def learned(parameters: dict[str, Tensor], before: dict[str, Tensor], part: str) -> bool:
    return all(
        not torch.equal(value, before[name])
        for name, value in tensors(parameters, part).items()
        if name.endswith("weight")
    )


def test_each_step_changes_its_own_layers_and_no_others(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    start = fresh().state_dict()
    one, two, three, four = (read_checkpoint(folder / step)["detector"] for step in STEPS)
    assert learned(one, start, "backbone")
    assert learned(one, start, "rpn")
    assert equal(one, start, "head")  # step 1 has no head
    assert learned(two, start, "backbone")  # from the pretrained one again,
    assert not equal(two, one, "backbone")  # so that nothing is shared yet
    assert learned(two, start, "head")
    assert equal(two, start, "rpn")
    assert equal(three, two, "backbone")  # bit-equal, running statistics included
    assert learned(three, start, "rpn")
    assert learned(three, one, "rpn")  # a fresh head, not that of step 1
    assert equal(four, two, "backbone")
    assert equal(four, three, "rpn")
    assert learned(four, two, "head")


def test_step_3_starts_from_a_fresh_rpn_and_step_4_from_the_head_of_step_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[dict[str, Tensor]] = []
    real = alternating.train

    def watched(detector: FasterRCNN, *rest: object, **more: object) -> object:
        starts.append({name: value.clone() for name, value in detector.state_dict().items()})
        return real(detector, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(alternating, "train", watched)
    alternate(fresh, *DATA, OPTIONS, (1, 1, 1, 1), tmp_path)
    start = fresh().state_dict()
    two = read_checkpoint(tmp_path / STEPS[1])["detector"]
    assert equal(starts[0], start, "backbone")
    assert equal(starts[1], start, "backbone")
    assert equal(starts[2], start, "rpn")
    assert equal(starts[2], two, "backbone")
    assert equal(starts[3], two, "head")


def test_the_result_is_one_network_that_a_run_folder_holds(finished: tuple[Path, FasterRCNN]) -> None:
    folder, detector = finished
    four = read_checkpoint(folder / STEPS[3])["detector"]
    for which in ("last", "best"):
        whole = load_detector(folder, which)
        assert all(torch.equal(value, four[name]) for name, value in whole.state_dict().items())
    assert read_checkpoint(folder)["iteration"] == sum(ITERATIONS)
    assert all(torch.equal(value, four[name]) for name, value in detector.state_dict().items())


def test_steps_2_and_4_learn_from_the_proposals_of_the_step_before(finished: tuple[Path, FasterRCNN]) -> None:
    folder, _ = finished
    for step in (STEPS[0], STEPS[2]):
        table = ProposalTable.load(folder / step / "proposals-train.npz")
        assert set(table) == {DATA[0].name(index) for index in range(len(DATA[0]))}
        assert max(len(regions.boxes) for regions in table.values()) == 40  # training_proposals' number after NMS


def test_a_killed_run_goes_on_in_its_step_and_ends_the_same(
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
        patch.setitem(TASKS, "fast-rcnn", replace(TASKS["fast-rcnn"], losses=stopping))
        with pytest.raises(KeyboardInterrupt):  # in the third batch of step 2
            alternate(fresh, *DATA, OPTIONS, ITERATIONS, tmp_path)
    assert read_checkpoint(tmp_path / STEPS[1])["iteration"] == 2
    assert not (tmp_path / STEPS[2]).exists()
    resumed, _ = alternate(fresh, *DATA, OPTIONS, ITERATIONS, tmp_path)
    folder, whole = finished
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for step in STEPS:
        assert (tmp_path / step / "losses.csv").read_text() == (folder / step / "losses.csv").read_text()


def test_the_reference_codes_shares_of_the_iterations() -> None:
    assert step_iterations(240000) == (80000, 40000, 80000, 40000)
    assert step_iterations(1) == (1, 1, 1, 1)
