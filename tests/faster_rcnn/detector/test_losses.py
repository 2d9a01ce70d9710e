"""The losses, compared with values calculated by hand."""

import math

import pytest
import torch

from faster_rcnn.detector import losses
from faster_rcnn.detector.rules import LossRule


def test_log_loss_is_minus_the_log_of_the_probability_of_the_true_class() -> None:
    scores = torch.log(torch.tensor([[0.2, 0.7, 0.1]]))
    assert losses.log_loss(scores, torch.tensor([1])).item() == pytest.approx(-math.log(0.7))


def test_smooth_l1_is_quadratic_below_one_and_linear_above() -> None:
    deltas = torch.tensor([[0.5, -2.0, 1.0, 0.0]])
    # 0.5 · 0.5² = 0.125;  2 - 0.5 = 1.5;  1 - 0.5 = 0.5;  0
    assert losses.smooth_l1(deltas, torch.zeros(1, 4), beta=1).item() == pytest.approx(2.125)


def test_smooth_l1_with_beta_one_ninth_equals_that_of_the_reference_code() -> None:
    # σ = 3 is β = 1/9: below it 0.5 · 9 · x², above |x| - 1/18
    deltas = torch.tensor([[0.1, 1.0, 0.0, 0.0]])
    assert losses.smooth_l1(deltas, torch.zeros(1, 4), beta=1 / 9).item() == pytest.approx(0.045 + 1 - 1 / 18)


def test_rpn_classification_is_the_mean_over_the_mini_batch() -> None:
    scores = torch.log(torch.tensor([[0.9, 0.1], [0.25, 0.75]]))  # background, foreground
    expected = (-math.log(0.9) - math.log(0.75)) / 2  # N_cls = 2
    assert losses.rpn_classification_loss(scores, torch.tensor([0, 1])).item() == pytest.approx(expected)


def test_the_rpn_box_loss_is_weighted_by_lambda_over_the_locations() -> None:
    deltas = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    # smooth L1: 0.5 and 2.5; λ = 10, N_reg = 2400 locations (section 3.1.2)
    loss = losses.rpn_box_loss(deltas, torch.zeros(2, 4), 2400, LossRule())
    assert loss.item() == pytest.approx(10 * 3.0 / 2400)


def test_the_reference_code_weights_rpn_boxes_nearly_as_the_paper_does() -> None:
    """The code has no λ and divides by the 256 sampled anchors: 1 / 256 against 10 / 2400 = 1 / 240."""
    deltas = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    code = losses.rpn_box_loss(deltas, torch.zeros(1, 4), 256, LossRule(rpn_lambda=1.0, rpn_normaliser="sampled"))
    assert code.item() == pytest.approx(0.5 / 256)
    sigma_3 = losses.rpn_box_loss(deltas, torch.zeros(1, 4), 256, LossRule(rpn_lambda=1.0, rpn_beta=1 / 9))
    assert sigma_3.item() == pytest.approx((1 - 1 / 18) / 256)


def test_the_head_box_loss_sums_over_objects_and_divides_by_all_regions() -> None:
    deltas = torch.zeros(4, 2, 4)  # four regions, two classes
    deltas[0, 1] = torch.tensor([2.0, 0, 0, 0])  # true class 2: smooth L1 1.5
    deltas[0, 0] = 99.0  # the deltas of other classes do not count
    deltas[1] = 99.0  # background does not count
    labels = torch.tensor([2, 0, 0, 0])
    assert losses.head_box_loss(deltas, torch.zeros(4, 4), labels, LossRule()).item() == pytest.approx(1.5 / 4)


def test_head_classification_is_the_mean_over_the_regions() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    expected = (math.log(2) - math.log(0.9)) / 2
    assert losses.head_classification_loss(scores, torch.tensor([0, 1])).item() == pytest.approx(expected)


def test_without_objects_the_box_loss_is_zero() -> None:
    assert losses.rpn_box_loss(torch.zeros(0, 4), torch.zeros(0, 4), 10, LossRule()).item() == 0
    background = torch.zeros(3, dtype=torch.int64)
    assert losses.head_box_loss(torch.ones(3, 2, 4), torch.zeros(3, 4), background, LossRule()).item() == 0
