"""How faults are reported, and which of them stop training."""

import pytest

from faster_rcnn.data.faults import Fault, printable, refuse, stopping

BOX = Fault("box without area", "a.json:7", "object 1: its box has no area", "remove it")
CLASSES = Fault("class listed twice", "a.json:2", "the class cat is already listed", "merge them", skippable=False)
WARNING = Fault("duplicate image", "a.json:3", "b.jpg has the same bytes", "keep one", warning=True)


def test_a_fault_is_reported_on_one_line_with_its_place_and_remedy() -> None:
    assert str(BOX) == "a.json:7: object 1: its box has no area; remove it"
    assert str(WARNING) == "a.json:3: warning: b.jpg has the same bytes; keep one"
    assert printable("two\nlines\x00é") == "two\\nlines\\x00é"


def test_errors_stop_training_unless_they_are_skipped() -> None:
    faults = [BOX, CLASSES, WARNING]
    assert stopping(faults, skip_bad_boxes=False) == [BOX, CLASSES]
    assert stopping(faults, skip_bad_boxes=True) == [CLASSES]
    refuse([WARNING], "coco:x", skip_bad_boxes=False)
    refuse([BOX], "coco:x", skip_bad_boxes=True)


def test_an_error_message_lists_three_faults_and_the_command_that_lists_all() -> None:
    with pytest.raises(ValueError, match="its box has no area") as refusal:
        refuse([BOX] * 5, "coco:x", skip_bad_boxes=False)
    message = str(refusal.value)
    assert message.count(str(BOX)) == 3
    assert message.endswith(
        " · and 2 more · faster-rcnn check --data coco:x lists all; --skip-bad-boxes leaves the faulty ones out"
    )


def test_skipping_is_not_offered_for_faults_that_cannot_be_skipped() -> None:
    with pytest.raises(ValueError, match=r"merge them · faster-rcnn check --data coco:x lists all$"):
        refuse([CLASSES], "coco:x", skip_bad_boxes=True)
