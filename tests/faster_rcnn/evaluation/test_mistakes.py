"""The kinds of mistakes, their severity and their order."""

from dataclasses import replace

import numpy as np
import pytest

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation.mistakes import Mistake, find_mistakes

LABELS = ("cat", "dog")
CAT, DOG, NOWHERE = [10.0, 10, 50, 50], [60.0, 60, 90, 90], [0.0, 90, 9, 99]


def truth(boxes: list[list[float]], labels: list[int]) -> Sample:
    return Sample(np.zeros((100, 100, 3), np.uint8), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels))


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Prediction:
    return Prediction(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels))


def mistakes(*detections: tuple[list[float], float, int]) -> list[Mistake]:
    """The mistakes of detections in an image with a cat and a dog."""
    boxes, scores, labels = (list(column) for column in zip(*detections, strict=True)) if detections else ([], [], [])
    return find_mistakes([truth([CAT, DOG], [0, 1])], [found(boxes, scores, labels)], LABELS, 0.5)


RIGHT = ((CAT, 0.9, 0), (DOG, 0.9, 1))


def test_correct_detections_are_not_mistakes() -> None:
    assert mistakes(*RIGHT) == []


@pytest.mark.parametrize(
    ("box", "label", "kind", "words"),
    [
        (NOWHERE, 0, "background", "there is no object here"),
        ([11, 10, 51, 50], 0, "duplicate", "a detection with a higher score has already found this object"),
        (DOG, 0, "wrong class", "the object is labelled dog"),
        # 40 × 40 moved by 20: 20 · 40 / (2 · 1600 - 800) = 0.33
        ([30, 10, 70, 50], 0, "poor localisation", "0.33"),
        # 30 × 30 moved by 15 and labelled cat: 15 · 30 / (2 · 900 - 450) = 0.33
        ([75, 60, 105, 90], 0, "background", "the nearest is labelled dog (IoU 0.33)"),
    ],
)
def test_each_kind_of_false_detection_is_recognised(box: list[float], label: int, kind: str, words: str) -> None:
    [mistake] = mistakes(*RIGHT, (box, 0.7, label))
    assert mistake.kind == kind
    assert words in mistake.caption
    assert mistake.caption.startswith(f"{LABELS[label]} 0.70 (threshold 0.5): ")
    assert mistake.severity == pytest.approx(0.7)
    assert mistake.box.tolist() == box


def test_a_detection_below_the_threshold_is_not_a_mistake_but_its_object_is_missed() -> None:
    [mistake] = mistakes((CAT, 0.9, 0), (DOG, 0.3, 1), (NOWHERE, 0.4, 1))
    assert (mistake.kind, LABELS[mistake.label]) == ("missed", "dog")
    assert mistake.severity == pytest.approx(0.7)  # 1 - 0.3
    assert mistake.caption == "dog missed at threshold 0.5: the best detection there scored 0.30, below 0.5"


def test_a_weak_detection_at_a_missed_object_is_mentioned_even_if_it_would_not_have_found_it() -> None:
    # The dog, 30 × 30, is detected as a cat, and 15 pixels further right as a dog: IoU 15 · 30 / (2 · 900 - 450) = 0.33
    moved = [75.0, 60, 105, 90]
    [missed] = mistakes((CAT, 0.9, 0), (DOG, 0.31, 0), (moved, 0.4, 1))
    assert missed.caption.endswith("the best detection there (cat, IoU 1.00) scored 0.31, below 0.5")
    assert missed.severity == 1.0  # at no threshold would it be found
    assert missed.others.tolist() == [DOG]
    [missed] = mistakes((CAT, 0.9, 0), (moved, 0.4, 1))
    assert missed.caption.endswith("the best detection there (dog, IoU 0.33) scored 0.40, below 0.5")
    [missed] = mistakes((CAT, 0.9, 0), (NOWHERE, 0.4, 1))
    assert missed.caption.endswith("no detection is near")


def test_the_caption_of_a_missed_object_says_what_was_detected_instead() -> None:
    kinds = {mistake.kind: mistake.caption for mistake in mistakes((CAT, 0.9, 0), (DOG, 0.8, 0))}
    assert set(kinds) == {"missed", "wrong class"}
    assert "detected as cat instead (IoU 1.00)" in kinds["missed"]
    blind = replace(found([], [], []), proposals=np.array([[60, 60, 90, 75]], np.float32))
    [missed] = find_mistakes([truth([DOG], [1])], [blind], LABELS, 0.5)
    assert missed.caption == "dog missed at threshold 0.5: no detection is near; the best proposal has IoU 0.50"
    assert missed.severity == 1.0


def test_a_detection_of_the_same_class_that_did_not_find_the_object_is_not_called_another_class() -> None:
    # 40 × 40, 20 lower: IoU 20 · 40 / (2 · 1600 - 800) = 0.33
    captions = {one.kind: one.caption for one in mistakes(([10, 30, 50, 70], 0.9, 0), (DOG, 0.9, 1))}
    assert captions["missed"].endswith("the cat detected there overlaps it too little (IoU 0.33)")
    # Two cats 8 pixels apart, and one detection on the first: IoU with the second is 32 / 48 = 0.67
    pair = truth([CAT, [18.0, 10, 58, 50]], [0, 0])
    [missed] = find_mistakes([pair], [found([CAT], [0.9], [0])], LABELS, 0.5)
    assert missed.caption.endswith("the cat detected there overlaps another object more (IoU 0.67)")


def test_the_worst_mistakes_come_first() -> None:
    ranked = mistakes((NOWHERE, 0.6, 0), (NOWHERE, 0.8, 1), (DOG, 0.1, 1))
    # Both objects are missed. No detection finds the cat (severity 1); one with a score of 0.1 finds the dog (0.9).
    assert [(one.kind, round(one.severity, 2)) for one in ranked] == [
        ("missed", 1.0),
        ("missed", 0.9),
        ("background", 0.8),
        ("background", 0.6),
    ]


def test_difficult_objects_and_crowds_are_never_mistakes() -> None:
    objects = replace(truth([CAT, DOG], [0, 0]), difficult=np.array([True, False]), crowd=np.array([False, True]))
    for prediction in (found([], [], []), found([CAT, CAT, [61, 61, 69, 69]], [0.9, 0.8, 0.7], [0, 0, 0])):
        assert find_mistakes([objects], [prediction], LABELS, 0.5) == []
