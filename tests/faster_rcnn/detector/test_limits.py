"""The limits of a detector: where they are read, how they are raised, and which data exceed them."""

from dataclasses import replace

import pytest

from faster_rcnn.detector.config import DEFAULTS, default_config
from faster_rcnn.detector.limits import Limits, limits_of, too_many_objects, with_detections


@pytest.mark.parametrize("backbone", DEFAULTS)
def test_every_backbone_returns_a_hundred_detections_unless_told_otherwise(backbone: str) -> None:
    assert default_config(backbone, ("cat",)).detections.detections == 100


def test_more_detections_bring_more_candidates_and_proposals() -> None:
    # compact: 100 detections of 400 candidates from 100 of 1000 proposals
    config = with_detections(default_config("compact", ("cat",)), 300)
    assert (config.detections.detections, config.detections.candidates) == (300, 1200)  # 4 · 300
    assert (config.proposals.before_nms, config.proposals.after_nms) == (1000, 300)
    huge = with_detections(config, 1500)
    assert (huge.proposals.before_nms, huge.proposals.after_nms) == (1500, 1500)


def test_fewer_detections_change_nothing_else() -> None:
    config = default_config("vgg16", ("cat",))
    assert with_detections(config, 10) == replace(config, detections=replace(config.detections, detections=10))


def test_limits_are_read_from_the_card_of_either_kind_of_detector() -> None:
    own = default_config("compact", ("cat",)).to_dict()
    assert limits_of(own) == Limits(100, 100, 0.005)
    theirs = {"box_detections_per_img": 50, "rpn_post_nms_top_n": 1000, "box_score_thresh": 0.05}
    assert limits_of(theirs) == Limits(50, 1000, 0.05)
    assert limits_of({}) is limits_of({"detections": 3, "proposals": {}}) is None


def test_a_warning_says_how_many_objects_cannot_be_found() -> None:
    # 150 and 310 objects are 50 and 210 more than 100; 150 + 310 + 20 = 480 in all
    assert too_many_objects([150, 310, 20], 100, "validation images") == (
        "2 of 3 validation images have more objects (up to 310) than the 100 detections that the model returns for an "
        "image, so at least 260 of 480 objects cannot be found; train or export with --detections 310"
    )
    assert too_many_objects([100, 0], 100) is None
    assert too_many_objects([], 100) is None
