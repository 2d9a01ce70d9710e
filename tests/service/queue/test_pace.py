import pytest

from service.queue.pace import ESTIMATE_DECAY, LEARNING_RATE, RUN_GROWTH, Pace

CANVAS, OTHER_CANVAS = (64, 96), (96, 64)


class Model:
    """Stands for a served model. Pace needs only its identity."""


# --- time between answers --------------------------------------------------------------------------------------------


def test_one_answer_is_not_enough_to_estimate_the_time_between_answers():
    pace = Pace()
    pace.learn_answers(1, decode_began=0, now=10)
    assert pace.seconds_between_answers == 0


def test_the_second_answer_sets_the_estimate_and_later_ones_change_it_by_a_tenth():
    pace = Pace()
    for now in (10, 30, 80):
        pace.learn_answers(1, decode_began=0, now=now)
    # 20 s at first; then 50 s, weighted by a tenth: 20 + 0.1 * (50 - 20) = 23
    assert LEARNING_RATE == 0.1
    assert pace.seconds_between_answers == pytest.approx(23)


def test_the_images_of_a_batch_share_its_time():
    pace = Pace()
    pace.learn_answers(1, decode_began=0, now=10)
    pace.learn_answers(4, decode_began=0, now=30)
    assert pace.seconds_between_answers == 20 / 4


def test_the_estimate_is_at_most_the_time_that_an_image_took():
    pace = Pace()
    for now in (0, 60, 120):
        pace.learn_answers(1, decode_began=now - 60, now=now)
    assert pace.seconds_between_answers == 60
    pace.learn_answers(1, decode_began=178, now=180)
    assert pace.seconds_between_answers == 2


def test_idle_time_is_not_counted():
    pace = Pace()
    pace.learn_answers(1, decode_began=0, now=10)
    pace.learn_answers(1, decode_began=0, now=20)
    pace.forget_last_answer()
    pace.learn_answers(1, decode_began=0, now=1000)
    assert pace.seconds_between_answers == 10


# --- fastest run -----------------------------------------------------------------------------------------------------


def test_there_is_no_estimate_for_a_model_or_canvas_before_its_first_run():
    pace, model = Pace(), Model()
    pace.learn_run(model, CANVAS, 3)
    assert pace.fastest_run(model, CANVAS) == 3
    assert pace.fastest_run(model, OTHER_CANVAS) == 0
    assert pace.fastest_run(Model(), CANVAS) == 0


def test_a_faster_run_lowers_the_estimate_at_once_and_a_slower_one_raises_it_a_little():
    pace, model = Pace(), Model()
    for seconds in (3, 2, 8):
        pace.learn_run(model, CANVAS, seconds)
    assert RUN_GROWTH == 1.05
    assert pace.fastest_run(model, CANVAS) == pytest.approx(2 * 1.05)


def test_a_dropped_image_lowers_only_the_estimate_for_its_canvas():
    pace, model = Pace(), Model()
    pace.learn_run(model, CANVAS, 10)
    pace.learn_run(model, OTHER_CANVAS, 10)
    pace.lower_run_estimate(model, CANVAS)
    assert ESTIMATE_DECAY == 0.8
    assert pace.fastest_run(model, CANVAS) == pytest.approx(8)
    assert pace.fastest_run(model, OTHER_CANVAS) == 10


def test_lowering_an_estimate_before_the_first_run_does_nothing():
    pace, model = Pace(), Model()
    pace.lower_run_estimate(model, CANVAS)
    assert pace.fastest_run(model, CANVAS) == 0


def test_estimates_do_not_keep_a_removed_model_in_memory():
    import gc
    import weakref

    pace, model = Pace(), Model()
    pace.learn_run(model, CANVAS, 1)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
