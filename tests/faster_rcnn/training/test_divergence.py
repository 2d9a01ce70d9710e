"""A run that comes apart is stopped, with the cause that its losses point to."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faster_rcnn.training.divergence import RISE, WINDOW, DivergenceWatch

FINE = {"rpn_classification": 0.5, "rpn_box": 0.2, "head_classification": 0.7, "head_box": 0.1}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named() -> None:
    with pytest.raises(
        FloatingPointError, match=r"iteration 700 .*head_classification nan.*0.001 is too high.*--resume"
    ):
        DivergenceWatch(100).check_losses(700, 0.001, FINE | {"head_classification": math.nan})


def test_box_losses_alone_point_to_boxes_of_no_size() -> None:
    with pytest.raises(FloatingPointError, match=r"next to no size, which scripts/check_data.py finds"):
        DivergenceWatch(100).check_losses(700, 0.001, FINE | {"rpn_box": math.inf})


def test_in_the_warm_up_it_is_the_rate_and_in_the_first_step_it_is_not() -> None:
    broken = FINE | {"head_classification": math.inf}
    with pytest.raises(FloatingPointError, match=r"in the warm-up, likely the learning rate, 0.05 by now"):
        DivergenceWatch(100).check_losses(50, 0.05, broken)
    with pytest.raises(FloatingPointError, match=r"at the very first step it is not the rate"):
        DivergenceWatch(100).check_losses(0, 0.05, broken)


def follow(watch: DivergenceWatch, first: int, last: int, factor: float) -> None:
    for iteration in range(first, last):
        watch.check_losses(iteration, 0.1, {name: value * factor for name, value in FINE.items()})


def test_losses_that_grow_far_beyond_their_best_stop_the_run_although_finite() -> None:
    watch = DivergenceWatch(0)
    follow(watch, 0, 200, 1.0)
    with pytest.raises(FloatingPointError, match=r"times what they were at best; likely the learning rate 0.1"):
        follow(watch, 200, 200 + WINDOW, RISE * 2)


@given(st.lists(st.sampled_from([0.001, 0.005, 0.5, 1.0, 2.0]), min_size=1, max_size=400))
def test_a_run_of_empty_images_among_full_ones_is_left_alone(values: list[float]) -> None:
    """What an untrained detector loses is more than any image costs later."""
    watch = DivergenceWatch(10)
    follow(watch, 0, WINDOW, 2.0)
    for iteration, value in enumerate(values):
        watch.check_losses(iteration, 0.001, {"rpn_box": value})
    assert len(watch.recent) == WINDOW


def test_the_watch_goes_on_where_a_checkpoint_left_it() -> None:
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


def test_a_gradient_that_is_not_finite_is_stopped_before_the_step() -> None:
    watch = DivergenceWatch(10)
    watch.check_gradient(20, 0.1, torch.tensor(3.0))
    with pytest.raises(FloatingPointError, match="gradients of norm inf"):
        watch.check_gradient(20, 0.1, torch.tensor(math.inf))
