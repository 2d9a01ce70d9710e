"""Anchor coverage, compared with a search over all anchors at all locations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from faster_rcnn.commands.check import build_parser
from faster_rcnn.commands.command_line import check_sizes
from faster_rcnn.data.annotations import AnnotatedImage, Annotation, ParsedSplit
from faster_rcnn.data.coverage import anchor_coverage, best_overlaps, inside_somewhere, suggest_ratios, suggest_scales
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.anchor_shapes import STRIDES
from faster_rcnn.detector.anchors import cell_anchors, grid_anchors, inside_image
from faster_rcnn.detector.config import DEFAULTS, DetectorConfig, default_config
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import AnchorSampling
from faster_rcnn.training.options import configure

UNCHANGED = ResizeRule(100, 200)  # the images here are 100 × 200, so they are not resized


def config(scales: tuple[float, ...], ratios: tuple[float, ...] = (1.0,), keep_crossing: bool = True) -> DetectorConfig:
    sampling = AnchorSampling(keep_crossing=keep_crossing)
    return DetectorConfig(("ant", "bee"), anchor_scales=scales, anchor_ratios=ratios, resize=UNCHANGED,
                          anchor_sampling=sampling)  # fmt: skip


def folder(*boxes: tuple[float, float, float, float], labels: tuple[int, ...] = ()) -> FolderDataset:
    """One image of 100 × 200 with these boxes, all of class ant unless `labels` is given."""
    pairs = zip(boxes, labels or (0,) * len(boxes), strict=True)
    objects = [Annotation("here", "object", "", box, label) for box, label in pairs]
    image = AnnotatedImage("a.jpg", Path("a.jpg"), 100, 200, "here", objects)
    return FolderDataset(ParsedSplit("voc:.", "train", ("ant", "bee"), [image], []))


def test_the_coverage_of_an_object_is_its_iou_with_the_best_anchor() -> None:
    # Stride 16: the third cell's centre is 2.5 * 16 = 40, so the anchor of scale 32 there spans 24 to 56.
    # 32 × 16 pixels of it lie in the second box: 512 / 1024 = 0.5, which is not above 0.5.
    coverage = anchor_coverage(folder((24, 24, 56, 56), (24, 32, 56, 48)), config((32.0,)), (16,))
    assert coverage.best.tolist() == [1.0, 0.5]
    assert coverage.sides.tolist() == [32.0, pytest.approx(512**0.5)]
    assert coverage.share(0.5) == 0.5
    assert coverage.share(0.7) == 0.5


def test_boxes_are_compared_after_the_images_are_resized() -> None:
    twice = replace(config((32.0,)), resize=ResizeRule(200, 400))
    assert anchor_coverage(folder((12, 12, 28, 28)), twice, (16,)).best.tolist() == [1.0]  # 24 to 56 when resized


def test_an_anchor_that_crosses_the_border_counts_only_if_it_is_trained() -> None:
    corner = folder((0, 0, 24, 24))  # the anchor around 8 spans -8 to 24, so the IoU is 24² / 32² = 0.5625
    assert anchor_coverage(corner, config((32.0,)), (16,)).best[0] == pytest.approx(24**2 / 32**2)
    # The first anchor inside spans 8 to 40: intersection 16², union 24² + 32² - 16² = 1344.
    dropped = anchor_coverage(corner, config((32.0,), keep_crossing=False), (16,))
    assert dropped.best[0] == pytest.approx(256 / 1344)


def test_anchor_shapes_that_do_not_fit_into_any_image_are_reported() -> None:
    # At scale 128 only the wide shape (181 × 90.5) fits into 100 × 200 pixels. Its centre must be at y 45.25 to 54.75.
    # With stride 16 the nearest centre is 3.5 * 16 = 56, just outside; with stride 4 some are inside.
    shapes = (0.5, 1.0, 2.0)
    fine = anchor_coverage(folder((0, 0, 50, 50)), config((128.0,), shapes, keep_crossing=False), (4,))
    assert fine.never_inside == ("128 at ratio 1", "128 at ratio 2")
    assert "2 of 3 (128 at ratio 1, 128 at ratio 2); warning: anchors that cross the border are dropped" in (
        fine.report()
    )
    coarse = anchor_coverage(folder((0, 0, 50, 50)), config((128.0,), shapes, keep_crossing=False), (16,))
    assert len(coarse.never_inside) == 3
    assert coarse.best.tolist() == [0.0]
    kept = anchor_coverage(folder((0, 0, 50, 50)), config((128.0,), shapes), (16,))
    assert "they are trained even though they cross the border" in kept.report()


side = st.floats(8, 150)
box = st.tuples(st.floats(0, 150), st.floats(0, 60), side, side).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], 200.0), min(b[1] + b[3], 100.0))
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(box, min_size=1, max_size=5),
    st.lists(st.floats(5, 300), min_size=2, max_size=4).filter(lambda scales: len(scales) % 2 == 0),
    st.sampled_from([(8,), (16,), (4, 32)]),
    st.booleans(),
)
def test_the_best_overlap_equals_the_maximum_over_all_anchors(
    boxes: list[tuple[float, float, float, float]], scales: list[float], strides: tuple[int, ...], keep: bool
) -> None:
    size = torch.tensor([100, 200])
    rule = config(tuple(scales), (0.5, 1.0, 2.0), keep)
    per_map = len(scales) // len(strides)
    anchors = torch.cat(
        [
            grid_anchors(
                cell_anchors(scales[number * per_map : (number + 1) * per_map], rule.anchor_ratios),
                -(-100 // stride), -(-200 // stride), stride,
            )
            for number, stride in enumerate(strides)
        ]
    )  # fmt: skip
    used = anchors[inside_image(anchors, size)] if not keep else anchors
    overlaps = box_iou(torch.tensor(boxes), used)
    expected = overlaps.max(dim=1).values if len(used) else torch.zeros(len(boxes))
    found = best_overlaps(np.array(boxes), np.array([[100, 200]] * len(boxes)), rule, strides)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert inside_somewhere(np.array([[100, 200]]), rule, strides).any() == bool(inside_image(anchors, size).any())


def test_the_report_has_a_row_for_each_class_and_size() -> None:
    # The bee is 8 × 8: its IoU with an anchor of 32 × 32 is at most 64 / 1024.
    dataset = folder((24, 24, 56, 56), (58, 58, 66, 66), labels=(0, 1))
    report = anchor_coverage(dataset, config((32.0,)), (4,)).report().splitlines()
    assert [line.split() for line in report[:6]] == [
        ["anchors", "objects", "IoU>0.5", "IoU>0.7"],
        ["all", "2", "50.0%", "50.0%"],
        ["ant", "1", "100.0%", "100.0%"],
        ["bee", "1", "0.0%", "0.0%"],
        ["8", "to", "16", "pixels", "1", "0.0%", "0.0%"],
        ["32", "to", "64", "pixels", "1", "100.0%", "100.0%"],
    ]


def test_scales_are_suggested_for_a_poorly_covered_class_and_cover_it_as_predicted() -> None:
    dataset = folder((24, 24, 56, 56), (58, 58, 66, 66), labels=(0, 1))
    coverage = anchor_coverage(dataset, config((32.0,)), (4,))
    # The sides span two octaves, 8 to 32, so there are two scales, half an octave from the ends: 8 * √2 and 16 * √2.
    assert coverage.suggestion is not None
    assert coverage.suggestion.anchor_scales == (11.0, 23.0)
    assert coverage.suggestion.resize == UNCHANGED
    again = anchor_coverage(dataset, coverage.suggestion, (4,))
    assert coverage.suggested == (again.share(0.5), again.worst_class()[0]) == (1.0, 1.0)
    assert coverage.worst_class() == (0.0, "bee")
    assert (
        "only 0.0% of the objects of class bee have an anchor with IoU above 0.5; --anchor-scales 11 23 would cover"
        in coverage.report()
    )
    assert anchor_coverage(folder((24, 24, 56, 56)), config((32.0,)), (16,)).suggestion is None


def test_larger_images_are_suggested_if_the_map_is_too_coarse() -> None:
    # With stride 32 the centres are 16, 48, 80 …  An object of 8 pixels around 40 does not overlap an anchor of 8
    # around 48. Enlarged 1.5 times, it has 12 pixels around 60 and overlaps none. Doubled, it has 16 pixels around 80,
    # like the anchor of scale 16 there.
    coverage = anchor_coverage(folder((36, 36, 44, 44)), config((64.0,)), (32,))
    assert coverage.best[0] == pytest.approx(8**2 / 64**2)
    assert coverage.suggestion is not None
    assert coverage.suggestion.anchor_scales == (16.0,)
    assert coverage.suggestion.resize == ResizeRule(200, 400)
    assert coverage.suggested == (1.0, 1.0)
    assert "--anchor-scales 16 --min-size 200 --max-size 400 would cover at least 100.0%" in coverage.report()


def test_scales_are_at_most_an_octave_apart_and_reach_both_ends() -> None:
    sides = np.geomspace(10, 500, 1000)
    scales = np.array(suggest_scales(sides, np.zeros(1000, np.int64), None))
    assert (scales[1:] / scales[:-1] <= 2.1).all()  # rounded to pixels
    assert scales[0] <= np.quantile(sides, 0.05) * 1.45
    assert scales[-1] >= np.quantile(sides, 0.95) / 1.45
    assert len(suggest_scales(sides, np.zeros(1000, np.int64), 5)) == 5
    assert suggest_scales(np.array([40.0]), np.array([0]), None) == (40.0,)


def test_coverage_is_defined_for_empty_and_generated_data_sets() -> None:
    empty = anchor_coverage(folder(), config((32.0,)), (16,))
    assert empty.share(0.5) == 0.0
    assert len(empty.report().splitlines()) == 1
    shapes = Shapes("val", length=10)
    coverage = anchor_coverage(shapes, default_config("compact", shapes.labels), (16,))
    assert len(coverage.best) == sum(len(shapes[index].labels) for index in range(10))
    assert coverage.share(0.5) > 0.5


def test_ratios_follow_the_objects_shapes() -> None:
    one_class = np.zeros(100, np.int64)
    assert suggest_ratios(np.full(100, 1 / 3), one_class) == (0.33,)
    # From 1/4 to 2 there are three octaves, so three ratios, half an octave from the ends: 2^-1.5, 2^-0.5, 2^0.5.
    assert suggest_ratios(np.repeat([0.25, 2.0], 50), one_class) == (0.35, 0.71, 1.4)
    # Quantiles belong to a class: one tall object in a hundred matters if it is a class of its own.
    assert suggest_ratios(np.array([1.0] * 99 + [4.0]), np.array([0] * 99 + [1])) == (1.4, 2.8)
    assert len(suggest_ratios(np.geomspace(0.001, 1000, 100), one_class)) == 6


def test_ratios_are_suggested_where_scales_alone_do_not_suffice() -> None:
    # Words 48 × 16 have the area of a square of 27.7, which overlaps them by 27.7 × 16 of 768 + 768 - 443: IoU 0.41.
    # With ratio 1 no scale is better than 0.41; with ratio 0.33 an anchor of scale 28 nearly equals a word.
    words = folder((24, 32, 72, 48), (80, 32, 128, 48))
    coverage = anchor_coverage(words, config((28.0,)), (8,))
    assert coverage.share(0.5) == 0
    assert coverage.suggestion is not None
    assert coverage.suggestion.anchor_ratios == (0.33,)
    assert coverage.suggestion.resize == UNCHANGED
    assert coverage.suggested == (1.0, 1.0)
    assert "; --anchor-ratios 0.33 would cover at least 100.0% of each class" in coverage.report()


@given(
    st.lists(box, min_size=1, max_size=5), st.integers(20, 300), st.integers(20, 300), st.sampled_from(sorted(DEFAULTS))
)
@settings(max_examples=20, deadline=None)
def test_the_advice_can_be_given_to_the_command(
    boxes: list[tuple[float, ...]], smallest: int, longest: int, backbone: str
) -> None:
    given_options = {"max_size": longest} | ({"min_size": smallest} if smallest <= longest else {})
    labelled = folder(*[(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes])
    found = anchor_coverage(labelled, configure(given_options, backbone, labelled.labels), STRIDES[backbone])
    if found.suggestion is None:
        return
    advice = next(line for line in found.report().splitlines() if "would cover" in line)
    words = advice.partition("; ")[2].partition(" would cover")[0].split()
    arguments = vars(build_parser().parse_args(words))
    check_sizes(given_options | {name: value for name, value in arguments.items() if value is not None})
