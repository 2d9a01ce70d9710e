"""The learning rate over the iterations, and the groups of parameters."""

import pytest
import torch

from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training.optimiser import build_optimiser, learning_rate, set_rate
from faster_rcnn.training.options import TrainingOptions


def test_the_rate_warms_up_linearly_and_falls_to_zero() -> None:
    options = TrainingOptions(iterations=100, batch_size=1, learning_rate=1.0, warm_up=10)
    rates = [learning_rate(options, iteration) for iteration in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)  # half of the cosine
    assert rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_step_cuts_the_rate_to_a_tenth_after_three_quarters() -> None:
    """Section 3.1.3: 0.001 for 60,000 mini-batches, 0.0001 for the next 20,000."""
    options = TrainingOptions(iterations=80000, batch_size=1, learning_rate=0.001, warm_up=1, decay="step")
    assert learning_rate(options, 59000) == 0.001
    assert learning_rate(options, 61000) == pytest.approx(0.0001)


def test_sgd_trains_biases_at_twice_the_rate_and_without_weight_decay() -> None:
    with torch.device("meta"):
        detector = FasterRCNN(default_config("compact", ("thing",)))
    detector.backbone.requires_grad_(False)
    optimiser = build_optimiser(detector, TrainingOptions(iterations=1, batch_size=1, learning_rate=0.001, warm_up=1))
    weights, others = optimiser.param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (0.0005, 0.0)
    assert all(one.ndim == 1 for one in others["params"])
    trained = {id(one) for part in (detector.rpn, detector.head) for one in part.parameters()}
    assert {id(one) for group in optimiser.param_groups for one in group["params"]} == trained
    set_rate(optimiser, 0.004)
    assert (weights["lr"], others["lr"]) == (0.004, 0.008)
