"""The losses of an objective: the parts they reach, the effect of options, and sampling by the image alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from faster_rcnn.data.loader import Batch, GroundTruth, Loading, training_batches
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.losses import total
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import LossRule, ProposalLimits
from faster_rcnn.training import objectives
from faster_rcnn.training.objectives import fast_rcnn_losses, joint_losses, rpn_losses


def detector(**changes: object) -> FasterRCNN:
    torch.manual_seed(3)
    config = replace(
        default_config("compact", Shapes.labels),
        rpn_channels=16,
        head_units=16,
        resize=ResizeRule(96, 192),
        training_proposals=ProposalLimits(100, 20),
        **changes,  # type: ignore[arg-type]
    )
    return FasterRCNN(config).eval()  # in training mode, padding would enter the batch-norm statistics


@pytest.fixture(scope="module")
def batch() -> Batch:
    return next(training_batches(Shapes("train", 40), ResizeRule(96, 192), 16, Loading(4, seed=0)))


def subset(batch: Batch, places: list[int]) -> Batch:
    proposals = None if batch.proposals is None else [batch.proposals[place] for place in places]
    return Batch(
        batch.images[places],
        batch.sizes[places],
        [batch.truth[place] for place in places],
        [batch.seeds[place] for place in places],
        proposals,
    )


def parts_with_gradients(of: FasterRCNN, losses: dict[str, Tensor]) -> set[str]:
    of.zero_grad(set_to_none=True)
    total(losses).backward()
    return {name.split(".")[0] for name, one in of.named_parameters() if one.grad is not None}


def test_gradients_reach_exactly_the_parts_of_each_objective(batch: Batch) -> None:
    here = detector()
    with_proposals = replace(batch, proposals=[truth.boxes + 2 for truth in batch.truth])
    assert parts_with_gradients(here, joint_losses(here, batch, False)) == {"backbone", "rpn", "head"}
    assert parts_with_gradients(here, rpn_losses(here, batch, False)) == {"backbone", "rpn"}
    assert parts_with_gradients(here, fast_rcnn_losses(here, with_proposals, False)) == {"backbone", "head"}


def test_the_loss_of_a_batch_is_the_mean_over_its_images_however_it_is_divided(batch: Batch) -> None:
    here = detector()
    whole = joint_losses(here, batch, False)
    parts = [joint_losses(here, subset(batch, places), False) for places in ([2, 0], [3, 1])]
    for name, value in whole.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=name)


def test_fast_rcnn_losses_of_a_batch_without_proposals_are_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="carry no proposals; open the data set with those of a source"):
        fast_rcnn_losses(detector(), batch, False)


@pytest.mark.parametrize("count", [0, 1])
def test_an_image_without_objects_and_with_at_most_one_proposal_has_finite_losses(batch: Batch, count: int) -> None:
    here = detector()
    one = replace(
        subset(batch, [0]),
        truth=[GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))],
        proposals=[torch.tensor([[5.0, 5.0, 40.0, 40.0]])[:count]],
    )
    losses = fast_rcnn_losses(here, one, False)
    assert losses["head_box"].item() == 0
    assert torch.isfinite(total(losses))


def test_the_three_readings_of_n_reg_divide_by_different_counts(batch: Batch) -> None:
    """One image: locations × 10 / λ = anchors / k = sampled."""
    one = subset(batch, [0])
    height, width = one.sizes[0].tolist()
    locations = -(-height // 16) * -(-width // 16)
    values = {}
    for reading in ("locations", "anchors", "sampled"):
        here = detector(losses=LossRule(rpn_lambda=1.0, rpn_normaliser=reading))  # type: ignore[arg-type]
        values[reading] = rpn_losses(here, one, False)["rpn_box"].item()
    k = here.rpn.k
    assert values["locations"] == pytest.approx(values["anchors"] * k, rel=1e-5)
    assert values["locations"] * locations == pytest.approx(values["sampled"] * 256, rel=1e-5)


def test_lambda_scales_the_rpns_box_loss_and_beta_sets_where_it_turns_linear(batch: Batch) -> None:
    of_one, of_ten, bent = (
        rpn_losses(detector(losses=rule), batch, False)["rpn_box"].item()
        for rule in (LossRule(rpn_lambda=1.0), LossRule(rpn_lambda=10.0), LossRule(rpn_lambda=1.0, rpn_beta=1 / 9))
    )
    assert of_ten == pytest.approx(10 * of_one, rel=1e-5)
    assert bent > of_one  # |x| - β/2 exceeds x²/2 wherever β < 1


def test_dropping_crossing_anchors_changes_the_classification_loss(batch: Batch) -> None:
    here = detector()
    kept = rpn_losses(here, batch, False)["rpn_classification"]
    dropped = detector(anchor_sampling=replace(here.config.anchor_sampling, keep_crossing=False))
    assert rpn_losses(dropped, batch, False)["rpn_classification"].item() != kept.item()


@pytest.mark.parametrize(("backbone", "reduced"), [("compact", True), ("mobilenet_v3_large", False)])
def test_depthwise_convolutions_keep_full_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, backbone: str, reduced: bool
) -> None:
    monkeypatch.setattr(objectives, "autocast_dtype", lambda _: torch.bfloat16)
    with torch.device("meta"):
        here = FasterRCNN(default_config(backbone, Shapes.labels))
    with objectives._precision(here, torch.zeros(1), True):  # noqa: SLF001  a whole MobileNet step would be slow
        assert torch.is_autocast_enabled("cpu") == reduced


def test_mixed_precision_gives_nearly_the_same_features(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    """bfloat16 has 8 bits of precision: features differ by about a percent, and are equal if it was not used."""
    monkeypatch.setattr(objectives, "autocast_dtype", lambda _: torch.bfloat16)
    here = detector()
    features: list[Tensor] = []
    hook = here.backbone.register_forward_hook(lambda _, __, output: features.append(output[0]))
    for mixed in (False, True):
        losses = joint_losses(here, batch, mixed)
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    hook.remove()
    full, reduced = features
    assert (full.dtype, reduced.dtype) == (torch.float32, torch.bfloat16)
    error = (full - reduced.float()).norm() / full.norm()
    assert 1e-4 < error.item() < 0.05
