"""The figures and tables of a load, calculated by hand."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import load_tables, turn_figures
from benchmarks.load.load_generator import Load
from benchmarks.load.process_usage import UNKNOWN, Usage
from benchmarks.load.raw_pipeline import Done
from benchmarks.load.turn_figures import Turn
from benchmarks.load.uploads import SIZES, describe, of_folder, of_one_image
from service.engine.model import load_model
from service.images.decode import decode

MODEL = Path(__file__).parents[2] / "model_store" / "shapes" / "1"


def test_a_turn_has_the_rate_the_percentiles_and_the_servers_usage() -> None:
    load = Load(
        seconds=2.0,
        rate=50.0,
        latencies=[n / 1000 for n in range(1, 102)],  # 1 to 101 ms
        refusals=[0.002, 0.004, 0.006],
        outcomes=Counter({"200": 101, "429": 2, "503": 1, "wrong": 4, "no connection": 2}),
        answered=200,
        cpu_seconds=0.1,
    )
    turn = turn_figures.of_load(load, Usage(1.0, 100), 150, Usage(5.0, 120), seconds=2.5)
    assert (turn.rate, turn.p50, turn.p95, turn.p99) == pytest.approx((50, 0.051, 0.096, 0.1))
    assert turn.cpu == pytest.approx(4.0 / 200)
    assert turn.cores == pytest.approx(4.0 / 2.5)
    assert turn.generator_cpu == pytest.approx(0.1 / 200)
    assert (turn.memory_before, turn.memory, turn.memory_after) == (100, 150, 120)
    assert turn.refused == pytest.approx(3 / 110)
    assert turn.refusal_p50 == pytest.approx(0.004)
    assert turn.failed == {"wrong": 4, "no connection": 2}


def test_unknown_figures_stay_unknown() -> None:
    turn = turn_figures.of_load(Load(seconds=1.0), UNKNOWN, None, UNKNOWN, seconds=1.0)
    assert (turn.p50, turn.cpu, turn.cores, turn.memory, turn.refused, turn.back) == (None,) * 6
    assert turn_figures.median([turn, Turn(1.0, 0.5, None, None)], lambda one: one.p50) == 0.5
    assert turn_figures.median([turn], lambda one: one.p50) is None


def test_the_raw_pipeline_has_the_same_figures() -> None:
    turn = turn_figures.of_raw(Done(images=100, seconds=2.0, cpu_seconds=3.0, memory=7, latencies=[0.02] * 100))
    assert (turn.rate, turn.p99, turn.cpu, turn.cores, turn.memory) == pytest.approx((50, 0.02, 0.03, 1.5, 7))


def test_ratios_are_taken_within_each_round_before_the_median() -> None:
    """40/50, 10/20, 90/100: the median of 0.8, 0.5, 0.9 is 0.8, but the ratio of the medians, 40/50, mixes rounds."""
    ours = [Turn(rate, 0.1, 0.1, 0.1) for rate in (40, 10, 90)]
    raw = [Turn(rate, 0.1, 0.1, 0.1) for rate in (50, 20, 100)]
    assert turn_figures.ratio(ours, raw, lambda turn: turn.rate) == pytest.approx(0.8)
    closed = {("service", 4): ours, (load_tables.RAW, 4): raw}
    service = next(line for line in load_tables.closed_table(closed).splitlines() if "service" in line)
    assert [cell.strip() for cell in service.split("|")][-3] == "0.80"


def test_overload_is_compared_with_the_peak_of_the_closed_loop() -> None:
    closed = {("service", n): [Turn(rate, 0.1, 0.1, 0.1)] for n, rate in ((1, 40), (16, 80))}
    opened = {("service", share): [Turn(rate, 0.1, 0.1, 0.1)] for share, rate in ((80.0, 79), (160.0, 76))}
    assert (
        load_tables.overload_lines(closed, opened)
        == "service: at 160/s offered it answers 95% of its peak of 80.0/s.\n"
    )


def test_failures_are_summed_over_the_rounds_by_outcome() -> None:
    turns = [Turn(1, 0.1, 0.1, 0.1, failed=Counter(wrong=2)), Turn(1, 0.1, 0.1, 0.1, failed=Counter({"500": 3}))]
    assert load_tables.failure_lines({("service", 16): turns}) == "service at 16: 3 × 500, 2 × wrong\n"
    assert "|      5 |" in load_tables.closed_table({("service", 16): turns})
    assert load_tables.failure_lines({("service", 16): [Turn(1, 0.1, 0.1, 0.1)]}) == ""


def test_one_client_is_compared_with_the_lone_pipeline_of_its_round() -> None:
    closed = {("service", 1): [Turn(40, 0.025, 0, 0)], (load_tables.LONE, 1): [Turn(40, 0.0235, 0, 0)]}
    assert "One client waits 1.5 ms (p50) longer" in load_tables.lone_line(closed)
    assert load_tables.lone_line({("service", 1): [Turn(40, 0.025, 0, 0)]}) == ""


def test_the_images_are_described_by_their_number_and_sizes() -> None:
    text = describe(of_one_image(MODEL / "example.jpg"))
    assert text.startswith(f"{len(SIZES)} images of {len(SIZES)} sizes, 333×500 to 1280×960, ")


def test_real_photographs_with_a_number_in_them_give_the_same_canvas() -> None:
    if "REAL_DATA_DIR" not in os.environ:
        pytest.skip("REAL_DATA_DIR names no folder of photographs")
    geometry = load_model(MODEL).card.geometry
    for one in of_folder(Path(os.environ["REAL_DATA_DIR"]) / "coco_cc", 20, seed=0):
        plain = decode(b"\xff\xd8" + one.rest, geometry)
        numbered = decode(one.numbered(12345), geometry)
        assert np.array_equal(plain.pixels, numbered.pixels)
        assert (plain.width, plain.height) == (numbered.width, numbered.height)
