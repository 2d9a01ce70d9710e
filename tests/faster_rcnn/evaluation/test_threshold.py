"""The served threshold: F1 curves worked out by hand, the rule against its definition, and what a person is told."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.threshold import (
    ASSUMED,
    BEST_F1,
    ScoredDetections,
    between,
    describe_choice,
    doubts,
    explain_choice,
)
from tests.faster_rcnn.evaluation.hand_made import LABELS, prediction, sample

CAT, DOG, NOWHERE = [10.0, 10, 50, 50], [60.0, 60, 90, 90], [0.0, 90, 9, 99]


def scored(
    scores: list[float], hits: list[bool], objects: list[int], images: list[int] | None = None
) -> ScoredDetections:
    """Detections with float32 scores, as detectors return them."""
    rounded = np.array(scores, np.float32).astype(np.float64)
    return ScoredDetections(
        rounded, np.array(hits, bool), np.array(images or [0] * len(scores), int), np.array(objects, int)
    )


def test_the_threshold_is_where_f1_is_highest() -> None:
    # five objects; detections by score, h: a hit
    #   score      0.9 h   0.8 h   0.7     0.6 h   0.5     0.4     0.3 h
    #   hits       1       2       2       3       3       3       4
    #   F1 = 2 · hits / (detections + 5)
    #              2/6     4/7     4/8     6/9     6/10    6/11    8/12
    # 6/9 and 8/12 are both 2/3. The precisions are 3/4 and 4/7, so the threshold keeps 0.6 and drops 0.5.
    found = scored([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [True, True, False, True, False, False, True], [5])
    assert found.best() == 0.55
    counts = found.at(0.55)
    assert (counts.hits, counts.detections, counts.objects) == (3, 4, 5)
    assert (counts.f1, counts.precision, counts.recall) == pytest.approx((2 / 3, 3 / 4, 3 / 5))


def test_equal_scores_are_kept_or_dropped_together() -> None:
    # Two objects. Keeping 0.9 alone: F1 2/3. Keeping the three detections at 0.5, too: hits 2 of 4, F1 4/6 = 2/3 with a
    # lower precision. Keeping only the hit among those at 0.5 (F1 1) is not possible.
    found = scored([0.9, 0.5, 0.5, 0.5], [True, True, False, False], [2])
    assert found.best() == 0.7


def test_a_model_whose_best_score_is_0_41_gets_a_threshold_below_it() -> None:
    # hits at 0.41 and 0.35, then false at 0.34 and 0.2: F1 is 2/3, 1, 4/5, 4/6 of two objects
    found = scored([0.41, 0.35, 0.34, 0.2], [True, True, False, False], [2])
    assert found.best() == 0.345
    assert found.at(0.5) == (0, 0, 2)


def test_detections_of_all_classes_and_images_count_together_and_ignored_ones_do_not() -> None:
    first = sample([CAT, DOG], [0, 1])
    hard = Sample(first.image, first.boxes, first.labels, difficult=np.array([False, True]))
    truths = [hard, sample([DOG], [1])]
    predictions = [
        prediction([CAT, DOG, NOWHERE], [0.8, 0.9, 0.3], [0, 1, 0]),  # the difficult dog is ignored
        prediction([DOG, CAT], [0.6, 0.7], [1, 1]),
    ]
    found = ScoredDetections.match(truths, predictions, len(LABELS))
    assert found.scores == pytest.approx([0.8, 0.7, 0.6, 0.3])
    assert found.hits.tolist() == [True, False, True, False]
    assert found.images.tolist() == [0, 1, 1, 0]
    assert found.objects.tolist() == [1, 1]
    # F1: 2/3, 2/4, 4/5, 4/6; halfway between 0.6 and 0.3
    assert found.best() == 0.45


def test_there_is_no_best_threshold_without_hits() -> None:
    for nothing in (scored([], [], [3]), scored([0.9], [False], [3]), scored([], [], [])):
        assert nothing.best() is None
        assert nothing.spread() is None
    value, record = describe_choice(scored([0.9], [False], [3]), "d/val")
    assert (value, record["rule"]) == (ASSUMED, "assumed")
    assert explain_choice(value, record) == (
        "score threshold 0.5: assumed, because the model finds no object on d/val (1 image, 3 objects) at any score"
    )
    assert doubts(value, record) == ["the model finds none of the 3 objects of d/val; train it longer"]


def test_data_without_objects_are_not_blamed_on_the_model() -> None:
    value, record = describe_choice(scored([0.9], [False], [0, 0]), "d/val")
    assert explain_choice(value, record) == (
        "score threshold 0.5: assumed, because there is no object on d/val (2 images, 0 objects)"
    )
    assert doubts(value, record) == [
        "d/val has no objects, so the score threshold cannot be chosen; name other validation data"
    ]


@pytest.mark.parametrize(
    ("low", "high", "value"),
    [(0.2, 0.6, 0.4), (0.0, 0.41, 0.2), (0.34, 0.35, 0.345), (0.4096, 0.4099, 0.4098), (0.0, 0.001, 0.0005)],
)
def test_the_threshold_is_the_shortest_decimal_near_the_middle(low: float, high: float, value: float) -> None:
    assert between(low, high) == value
    assert low < between(low, high) <= high


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
@settings(deadline=None)
def test_a_threshold_between_two_scores_tells_them_apart_as_the_service_compares_them(a: float, b: float) -> None:
    low, high = sorted((a, b))
    if low == high:
        return
    scores = np.array([high, low], np.float32)
    assert (scores >= between(low, high)).tolist() == [True, False]


detections = st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=12)


@given(detections, st.integers(0, 6))
@settings(deadline=None)
def test_no_threshold_is_better_than_the_chosen_one(listed: list[tuple[int, bool]], missed: int) -> None:
    """Every threshold is tried, in exact fractions; of equal F1 the highest precision must be chosen."""
    listed = sorted(listed, reverse=True, key=lambda one: one[0])
    hits = [hit for _, hit in listed]
    objects = sum(hits) + missed
    found = scored([score / 8 for score, _ in listed], hits, [objects])

    def quality(threshold: float) -> tuple[Fraction, Fraction]:
        kept = [hit for score, hit in listed if score / 8 >= threshold]
        f1 = Fraction(2 * sum(kept), len(kept) + objects) if objects or kept else Fraction(0)
        return f1, Fraction(sum(kept), len(kept)) if kept else Fraction(0)

    best = found.best()
    if not any(hits):
        assert best is None
        return
    assert best is not None
    assert quality(best) == max(quality(score / 8) for score, _ in listed)
    assert found.at(best).f1 == pytest.approx(float(quality(best)[0]))


def test_the_range_is_that_of_the_rule_on_drawings_of_the_images() -> None:
    # Image 0 has a hit at 0.9, image 1 a hit at 0.3 behind a false detection at 0.6, one object each. A drawing of two
    # images is 00 (a quarter), 01 or 10 (half), 11 (a quarter).
    #   00: 0.9 twice: F1 1 at 0.9
    #   01: h 0.9, f 0.6, h 0.3: F1 2/3, 2/4, 4/5: 0.3
    #   11: f 0.6 twice, h 0.3 twice: F1 0, 4/6: 0.3
    # So a quarter of the drawings gives 0.9: the middle 90 % reach from 0.3 to 0.9.
    found = scored([0.9, 0.6, 0.3], [True, False, True], [1, 1], [0, 1, 1])
    assert found.spread() == pytest.approx((0.3, 0.9))
    # With equal images, every drawing is equal.
    same = scored(list(itertools.chain([0.9] * 4, [0.5] * 4)), [True] * 4 + [False] * 4, [1] * 4, [0, 1, 2, 3] * 2)
    assert same.spread() == pytest.approx((0.9, 0.9))


def test_the_record_says_on_what_the_threshold_was_chosen_and_how_sure_it_is() -> None:
    found = scored([0.41, 0.35, 0.34, 0.2], [True, True, False, True], [4])
    # F1: 2/5, 4/6, 4/7, 6/8: all four are kept, three of them hits, of four objects
    value, record = describe_choice(found, "voc:x/val")
    assert value == 0.1  # halfway between 0.2 and 0
    assert record == {
        "rule": BEST_F1, "data": "voc:x/val", "images": 1, "objects": 4, "F1": 0.75, "precision": 0.75, "recall": 0.75,
        "detections": 4, "objects_found": 3, "objects_found_at_any_score": 3, "range": [0.2, 0.2],
    }  # fmt: skip
    assert explain_choice(value, record) == (
        "score threshold 0.1: the highest F1 at IoU 0.5; on voc:x/val (1 image, 4 objects): F1 0.750, precision "
        "0.750, recall 0.750; other images of the same kind would give 0.20 to 0.20 (nine times in ten)"
    )
    [few] = doubts(value, record)
    assert few.startswith("voc:x/val has only 4 objects, so the score threshold is uncertain")


def test_a_given_threshold_at_which_the_model_returns_nothing_is_doubted() -> None:
    found = scored([0.41, 0.35, 0.34], [True, True, False], [2])
    value, record = describe_choice(found, "d/val", 0.5)
    assert (value, record["rule"], record["best"]) == (0.5, "given", {"score_threshold": 0.345, "F1": 1.0})
    assert doubts(value, record) == [
        "at a score threshold of 0.5 the model returns nothing: 0 of the 2 objects that it finds on d/val at lower "
        "scores; 0.345 would give an F1 of 1.000"
    ]
    assert explain_choice(value, record).endswith(
        "F1 0.000, precision 0.000, recall 0.000; the highest F1 there is 1.000, at 0.345"
    )
    assert doubts(*describe_choice(found, "d/val", 0.4)) == []  # half of what it finds


def test_a_rule_that_keeps_a_small_share_of_what_is_found_is_doubted() -> None:
    # Two hits, F1 4/12. Below, each of eight hits comes after nine false detections: F1 falls to 20/(82 + 10) = 0.22.
    scores = [0.9, 0.8] + [0.5 - place / 200 for place in range(80)]
    hits = [True, True] + [place % 10 == 9 for place in range(80)]
    value, record = describe_choice(scored(scores, hits, [10]), "d/val")
    assert "returns 2 of the 10 objects" in doubts(value, record)[0]


def test_a_perfect_prediction_is_kept_whole() -> None:
    truth = [sample([CAT], [0]), sample([DOG, CAT], [1, 0])]
    exact = [Prediction(one.boxes, np.full(len(one.labels), 0.8, np.float32), one.labels) for one in truth]
    found = ScoredDetections.match(truth, exact, len(LABELS))
    assert found.best() == 0.4
    assert found.at(0.4).f1 == 1.0
