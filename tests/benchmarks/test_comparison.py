"""Contenders measured in turns, and the tables of the results."""

import time
from functools import partial

import pytest

from benchmarks.comparison import Entry, Measured, compare
from benchmarks.contenders import Contender, Found, Turn
from benchmarks.report import comparison_table, stage_table
from service.engine.providers import CPU


def sleeper(milliseconds: float, fails_at: int = 0) -> Contender:
    """A contender with a constant time per image that finds N boxes."""

    def turn(n: int, at_least: float) -> Turn:
        if n == fails_at:
            raise ValueError(f"no batches of {n}")
        time.sleep(n * milliseconds / 1e3)
        return Turn([n * milliseconds / 1e3], n * 1_000_000, Found(n, None))

    return turn


def test_every_contender_is_measured_at_every_n_and_a_failure_keeps_its_reason() -> None:
    entries = [Entry("fast", partial(sleeper, 1.0)), Entry("slow", partial(sleeper, 3.0, fails_at=2))]
    results = compare(entries, [2, 1], CPU, seconds=0.0, rounds=3)
    assert [(one.name, one.n) for one in results] == [("fast", 1), ("slow", 1), ("fast", 2), ("slow", 2)]
    fast, slow, fast_of_two, slow_of_two = results
    assert (len(fast.turns), fast.memory, fast.found) == (3, 1_000_000, Found(1, None))
    assert fast.times_as_fast_as(slow) == pytest.approx(3.0)
    assert fast_of_two.seconds == pytest.approx(0.002)
    assert (slow_of_two.failed, slow_of_two.turns) == ("no batches of 2", [])


def test_a_contender_whose_first_calls_take_too_long_is_not_tried_at_a_larger_n() -> None:
    results = compare([Entry("slow", partial(sleeper, 50.0), patience=0.01)], [1, 2], CPU, seconds=0.0, rounds=1)
    assert not results[0].failed
    assert results[1].failed.startswith("not tried: the first calls at smaller N took")


def measured(name: str, n: int, turns: list[float], **more: object) -> Measured:
    return Measured(name, n, turns, list(turns), **more)  # type: ignore[arg-type]


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds() -> None:
    # the machine was ten times slower in the second round, for both
    ours, theirs = measured("ours", 1, [0.1, 1.0, 0.1]), measured("theirs", 1, [0.2, 3.0, 0.1])
    assert ours.times_as_fast_as(theirs) == pytest.approx(2.0)  # the median of 2, 3 and 1


def test_the_table_has_a_row_for_each_contender_and_the_reasons_of_failures_below() -> None:
    rows = [
        measured("ours", 2, [0.1, 0.1], memory=5_000_000, found=Found(3, 7)),
        measured("eager", 2, [0.3, 0.3], memory=9_000_000, found=Found(3, None)),
        Measured("traced", 2, failed="of a batch of one"),
    ]
    text = comparison_table(rows, "eager", "loop")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert cells[0][-5:] == ["× eager", "× loop", "MB", "detections", "proposals"]
    # two images in 100 ms
    assert cells[2] == ["ours", "2", "20.0", "50.0", "100.0", "100.0", "3.00", "–", "5", "3", "7"]
    assert cells[3] == ["eager", "2", "6.7", "150.0", "300.0", "300.0", "1.00", "–", "9", "3", "–"]
    assert cells[4] == ["traced", "2", "failed", *["–"] * 8]
    assert text.splitlines()[-1] == "traced, N = 2: of a batch of one"


def test_the_stage_table_has_each_stages_share() -> None:
    text = stage_table({1: {"backbone": 3.0, "head": 1.0}})
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]] == ["backbone", "3.00", "75%"]
    assert [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]] == ["all", "4.00", "100%"]
    assert stage_table({}) == ""
