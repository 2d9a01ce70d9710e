"""A diverging run is stopped, with the cause that its losses suggest."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faster_rcnn.training.divergence import RISE, WINDOW, DivergenceWatch

FINE = {"rpn_classification": 0.5, "rpn_box": 0.2, "head_classification": 0.7, "head_box": 0.1}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named() -> None:
    with pytest.raises(
        FloatingPointError, match=r"iteration 700 .*head_classification nan.*0.001 is probably too high.*--resume"
    ):
        DivergenceWatch(100).check_losses(700, 0.001, FINE | {"head_classification": math.nan})


def test_infinite_box_losses_alone_suggest_tiny_objects() -> None:
    with pytest.raises(FloatingPointError, match=r"some objects are tiny, which faster-rcnn check reports"):
        DivergenceWatch(100).check_losses(700, 0.001, FINE | {"rpn_box": math.inf})


def test_the_rate_is_blamed_during_the_warm_up_but_not_at_the_first_step() -> None:
    broken = FINE | {"head_classification": math.inf}
    with pytest.raises(FloatingPointError, match=r"this is in the warm-up; the learning rate, 0.05 so far, is"):
        DivergenceWatch(100).check_losses(50, 0.05, broken)
    with pytest.raises(FloatingPointError, match=r"at the first step the learning rate is not the cause"):
        DivergenceWatch(100).check_losses(0, 0.05, broken)


def follow(watch: DivergenceWatch, first: int, last: int, factor: float) -> None:
    for iteration in range(first, last):
        watch.check_losses(iteration, 0.1, {name: value * factor for name, value in FINE.items()})


def test_finite_losses_that_rise_far_above_their_lowest_average_stop_the_run() -> None:
    watch = DivergenceWatch(0)
    follow(watch, 0, 200, 1.0)
    with pytest.raises(FloatingPointError, match=r"times their lowest average; the learning rate 0.1 is"):
        follow(watch, 200, 200 + WINDOW, RISE * 2)


@given(st.lists(st.sampled_from([0.001, 0.005, 0.5, 1.0, 2.0]), min_size=1, max_size=400))
def test_a_mix_of_empty_and_full_images_does_not_stop_a_run(values: list[float]) -> None:
    """The first average, of an untrained detector, exceeds the loss of any later image."""
    watch = DivergenceWatch(10)
    follow(watch, 0, WINDOW, 2.0)
    for iteration, value in enumerate(values):
        watch.check_losses(iteration, 0.001, {"rpn_box": value})
    assert len(watch.recent) == WINDOW


def test_the_watch_continues_from_the_state_in_a_checkpoint() -> None:
    whole, broken = DivergenceWatch(0), DivergenceWatch(0)
    for iteration in range(120):
        whole.check_losses(iteration, 0.1, {"rpn_box": 1 + math.sin(iteration)})
    for iteration in range(70):
        broken.check_losses(iteration, 0.1, {"rpn_box": 1 + math.sin(iteration)})
    resumed = DivergenceWatch(0)
    resumed.state = broken.state
    for iteration in range(70, 120):
        resumed.check_losses(iteration, 0.1, {"rpn_box": 1 + math.sin(iteration)})
    assert resumed.state == whole.state


def test_an_infinite_gradient_stops_the_run() -> None:
    watch = DivergenceWatch(10)
    watch.check_gradient(20, 0.1, torch.tensor(3.0))
    with pytest.raises(FloatingPointError, match="gradients of norm inf"):
        watch.check_gradient(20, 0.1, torch.tensor(math.inf))
