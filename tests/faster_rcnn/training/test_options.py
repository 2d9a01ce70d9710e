"""Default options for a backbone and a data set, and the detector that the options describe."""

import pytest

from faster_rcnn.training.options import (
    EPOCHS,
    LEAST_BATCHES,
    PRETRAINED,
    TrainingOptions,
    complete_options,
    configure,
    default_options,
    default_weights,
    short_warm_up,
)


@pytest.mark.parametrize(
    ("images", "batch_size", "iterations"),
    [
        (80_000, 8, 300_000),  # 30 epochs: 30 · 80,000 / 8
        (400, 8, LEAST_BATCHES),  # 30 · 400 / 8 = 1500 would be too few
        (3, 3, LEAST_BATCHES),  # a batch has no more images than the data set
    ],
)
def test_the_length_of_a_run_is_30_epochs_but_not_less_than_2500_batches(
    images: int, batch_size: int, iterations: int
) -> None:
    assert EPOCHS == 30
    options = default_options("compact", "none", "voc:images", images)
    assert (options["batch_size"], options["iterations"]) == (batch_size, iterations)


def test_a_run_on_generated_images_has_its_own_default_length() -> None:
    options = default_options("compact", "none", "shapes", 1_000_000)
    assert (options["iterations"], options["batch_size"], options["augmentations"]) == (4500, 16, ("flip",))


def test_pretrained_weights_select_the_papers_fine_tuning_and_random_weights_select_adamw() -> None:
    tuned = complete_options({}, "vgg16", default_weights("vgg16"), "voc:images", 5000)
    assert (tuned.optimiser, tuned.decay, tuned.learning_rate, tuned.batch_size) == ("sgd", "step", 0.001, 1)
    assert (tuned.trainable_from, tuned.frozen_statistics) == ("conv3_1", True)
    scratch = complete_options({}, "vgg16", "none", "voc:images", 5000)
    assert (scratch.optimiser, scratch.decay, scratch.trainable_from) == ("adamw", "cosine", None)
    assert not scratch.frozen_statistics
    assert [default_weights(name) for name in (*PRETRAINED, "compact")] == ["imagenet"] * 5 + ["none"]


def test_the_users_options_replace_defaults_and_other_keys_are_ignored() -> None:
    user_options = {"learning_rate": 0.5, "augmentations": [], "backbone": "compact", "min_size": 96}
    options = complete_options(user_options, "compact", "none", "shapes", 100)
    assert (options.learning_rate, options.augmentations, options.batch_size) == (0.5, (), 16)


def test_the_warm_up_is_cut_to_a_quarter_of_a_short_run_unless_the_user_names_it() -> None:
    assert [short_warm_up(100, iterations) for iterations in (1, 40, 4000)] == [1, 10, 100]
    named = complete_options({"warm_up": 30, "iterations": 40}, "compact", "none", "shapes", 100)
    assert named.warm_up == 30


def test_options_survive_json_where_tuples_become_lists() -> None:
    options = TrainingOptions(iterations=1, batch_size=1, learning_rate=1.0, warm_up=1, augmentations=("flip",))
    assert TrainingOptions.from_dict(vars(options) | {"augmentations": ["flip"]}) == options


def test_without_options_the_detector_has_the_preset_configuration_except_in_fast_rcnn() -> None:
    joint, alone = (configure({"schedule": schedule}, "compact", ("cat",)) for schedule in ("joint", "fast-rcnn"))
    assert joint == configure({}, "compact", ("cat",))
    assert joint.proposal_sampling.background_iou == (0.0, 0.5)
    assert alone.proposal_sampling.background_iou == (0.1, 0.5)  # Fast R-CNN, section 2.3


def test_options_change_the_detector() -> None:
    config = configure(
        {
            "anchor_scales": [32, 64], "anchor_ratios": [1.0], "min_size": 900, "roi_pooling": "max",
            "crossing_anchors": "drop", "rois": 7, "rpn_normaliser": "sampled", "proposal_nms": 0.6,
            "training_proposals": [50, 40], "test_proposals": [30, 20], "detection_nms": 0.3,
            "target_normalisation": "none",
        },
        "compact",
        ("cat",),
    )  # fmt: skip
    assert (config.anchor_scales, config.anchor_ratios, config.roi_pooling) == ((32, 64), (1.0,), "max")
    assert config.resize.min_size == 900
    assert config.resize.max_size >= 900  # the longer side is never limited below the shorter one
    assert not config.anchor_sampling.keep_crossing
    assert config.proposal_sampling.batch == 7
    assert (config.losses.rpn_normaliser, config.losses.rpn_lambda) == ("sampled", 1.0)
    for limits, numbers in ((config.training_proposals, (50, 40)), (config.proposals, (30, 20))):
        assert (limits.before_nms, limits.after_nms, limits.nms_threshold) == (*numbers, 0.6)
    assert config.detections.nms_threshold == 0.3
    assert config.target_normalisation.stds == (1.0, 1.0, 1.0, 1.0)
