import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.queue.memory import MOST_PASSES, Claim, MemoryBudget, TooMuchMemoryError


def test_uploads_hold_at_most_a_quarter_of_the_budget():
    budget = MemoryBudget(400)
    assert budget.hold(60)
    assert not budget.hold(41)  # 60 + 41 > 400 / 4
    assert budget.hold(40)
    budget.let_go(60)
    assert (budget.held, budget.hold(60)) == (40, True)


def test_work_uses_what_clients_cannot_hold():
    budget = MemoryBudget(400)  # 300 for work
    first, second, third = Claim(200), Claim(101), Claim(100)
    assert budget.begin(first)
    assert not budget.begin(second)
    assert budget.begin(third)
    budget.end(first)
    assert budget.begin(second)
    assert budget.work == 201


def test_a_response_is_always_counted_and_leaves_less_for_work():
    budget = MemoryBudget(400)
    budget.hold_anyway(250)
    assert not budget.begin(Claim(151))
    assert budget.begin(Claim(150))
    assert not budget.hold(1)


def test_no_drawing_begins_while_responses_exceed_their_share():
    budget = MemoryBudget(400)
    drawing = Claim(10)
    budget.hold_anyway(101)
    assert not budget.begin(drawing, produces_response=True)
    assert budget.begin(Claim(10))  # decoding produces no response
    budget.let_go(1)
    assert budget.begin(drawing, produces_response=True)


def test_work_that_can_never_fit_is_refused():
    with pytest.raises(TooMuchMemoryError) as caught:
        MemoryBudget(400).begin(Claim(301))
    assert (caught.value.needed, caught.value.limit) == (301, 300)


def test_a_lower_limit_refuses_work_that_waits():
    budget = MemoryBudget(400)
    budget.begin(Claim(100))
    waiting = Claim(300)
    assert not budget.begin(waiting)
    budget.set_limit(200)
    with pytest.raises(TooMuchMemoryError):
        budget.begin(waiting)
    assert not budget._line  # noqa: SLF001  else it would block others for ever


def test_later_work_passes_waiting_work_only_a_limited_number_of_times():
    budget = MemoryBudget(400)
    running, large = Claim(100), Claim(300)
    assert budget.begin(running)
    assert not budget.begin(large)
    for _ in range(MOST_PASSES):
        small = Claim(10)
        assert budget.begin(small)
        budget.end(small)
    late = Claim(10)
    assert not budget.begin(late)  # would fit, but `large` has been passed often enough
    budget.end(running)
    assert budget.begin(large)
    assert not budget.begin(late)
    budget.end(large)
    assert budget.begin(late)


def test_work_that_is_dropped_lets_the_others_pass():
    budget = MemoryBudget(400)
    heard = []
    budget.on_release(lambda: heard.append(None))
    budget.begin(Claim(100))
    large, late = Claim(300), Claim(10)
    large.passed = MOST_PASSES
    assert not budget.begin(large)
    assert not budget.begin(late)
    budget.withdraw(large)
    assert heard == [None]
    assert budget.begin(late)


def test_listeners_hear_of_free_memory_only_if_work_waits():
    budget = MemoryBudget(400)
    heard = []
    budget.on_release(lambda: heard.append(None))
    first = Claim(300)
    budget.begin(first)
    budget.hold(10)
    budget.let_go(10)
    assert heard == []
    budget.begin(Claim(300))
    budget.end(first)
    assert heard == [None]


@given(st.lists(st.tuples(st.sampled_from(["work", "end", "hold", "let go"]), st.integers(1, 400)), max_size=60))
def test_work_and_uploads_together_never_exceed_the_limit(steps):
    budget, running, held = MemoryBudget(400), [], []
    for step, size in steps:
        if step == "work" and size <= budget.largest_work:
            claim = Claim(size)
            running += [claim] if budget.begin(claim) else []
        elif step == "hold":
            held += [size] if budget.hold(size) else []
        elif step == "end" and running:
            budget.end(running.pop(size % len(running)))
        elif step == "let go" and held:
            budget.let_go(held.pop(size % len(held)))
        assert budget.work == sum(claim.size for claim in running)
        assert budget.held == sum(held)
        assert budget.work + budget.held <= 400
