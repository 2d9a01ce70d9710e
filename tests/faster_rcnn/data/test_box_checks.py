"""Checks of annotated boxes, especially of duplicates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from faster_rcnn.data.annotations import AnnotatedImage, Annotation
from faster_rcnn.data.box_checks import FEW, NEAR_DUPLICATE, check_boxes, near_duplicates
from faster_rcnn.data.sources import open_dataset, open_folder
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image


def test_near_duplicates_cause_warnings_and_are_left_out_only_on_request(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    # 20 × 20 boxes: IoU 380 / 420 = 0.905 when shifted by one pixel, 300 / 500 = 0.6 when shifted by five.
    boxes = [(10, 20, 20, 20), (11, 20, 20, 20), (15, 20, 20, 20)]
    annotations = [annotation_entry(place, 1, box) for place, box in enumerate(boxes)]
    source = write_coco_folder(
        tmp_path, [image_entry(1, "a.jpg")], [*annotations, annotation_entry(3, 1, boxes[0]) | {"iscrowd": 1}]
    )
    kept = open_folder(source, "train")
    assert [fault.kind for fault in kept.faults] == ["near-duplicate box"]
    assert "annotation 1: its box [11, 20, 20, 20] in a.jpg has an IoU of 0.90 with the box of annotation 0" in (
        kept.faults[0].what
    )
    assert len(kept[0].boxes) == 4
    skipped = open_dataset(source, "train", skip_bad_boxes=True)
    assert skipped[0].boxes[:, 0].tolist() == [10, 15, 10]


def test_duplicates_are_found_among_many_boxes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    grid = [(x * 0.5, y * 0.5, 0.4, 0.4) for x in range(60) for y in range(20)]
    annotations = [annotation_entry(place, 1, box) for place, box in enumerate([*grid, grid[7], grid[1000]])]
    dataset = open_folder(write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], annotations), "train")
    assert [fault.what.partition(":")[0] for fault in dataset.faults] == ["annotation 1200", "annotation 1201"]
    assert len(dataset.objects(0)[0]) == 1200


def annotation(box: tuple[float, ...], label: int = 0, crowd: bool = False) -> Annotation:
    x1, y1, x2, y2 = box
    return Annotation("a.json:1", "object", "", (x1, y1, x2, y2), label, crowd)


@pytest.mark.parametrize(
    ("box", "kind", "kept"),
    [
        ((10, 10, 10.05, 20), "box without area", []),  # narrower than 0.1 pixels
        ((100, 10, 120, 20), "box outside the image", []),
        ((90, 10, 102.5, 20), "box outside the image", [[90, 10, 100, 20]]),  # 2.5 pixels beyond, reported and clipped
        ((90, 10, 101.5, 20), None, [[90, 10, 100, 20]]),  # 1.5 pixels beyond, within the tolerance of 2
    ],
)
def test_a_box_is_checked_against_its_image(box: tuple[float, ...], kind: str | None, kept: list[list[float]]) -> None:
    image = AnnotatedImage("a.jpg", Path("a.jpg"), 60, 100, "a.json:1", [annotation(box)])
    objects, faults = check_boxes(image, drop_near_duplicates=False)
    assert [fault.kind for fault in faults] == ([] if kind is None else [kind])
    assert [clipped.tolist() for _, clipped in objects] == kept


def test_boxes_of_two_classes_and_boxes_in_a_crowd_are_not_duplicates() -> None:
    box = (10, 10, 30, 30)
    objects = [annotation(box), annotation(box, label=1), annotation(box, crowd=True)]
    kept, faults = check_boxes(AnnotatedImage("a.jpg", Path("a.jpg"), 60, 100, "a.json:1", objects), True)
    assert (len(kept), faults) == (3, [])


corner = st.floats(-5, 60)
side = st.floats(0.1, 30)
boxes = st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=FEW + 3)


@settings(deadline=None)
@given(boxes, st.integers(0, 2**32 - 1))
def test_the_search_finds_every_near_duplicate_that_comparing_all_pairs_finds(
    found: list[tuple[float, ...]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corners = np.array([[x, y, x + width, y + height] for x, y, width, height in found])
    shifts = np.tile(rng.uniform(-0.3, 0.3, (len(corners), 2)), 2)
    corners = np.concatenate([corners, corners + shifts])
    rng.shuffle(corners)
    labels = rng.integers(0, 2, len(corners))
    iou = box_iou(torch.from_numpy(corners), torch.from_numpy(corners))
    expected: dict[int, int] = {}
    for later, earlier in (iou > NEAR_DUPLICATE).tril(-1).nonzero().tolist():
        if labels[later] == labels[earlier] and not {later, earlier} & expected.keys():
            expected[later] = earlier
    pairs = list(near_duplicates(corners, labels))
    assert [pair[:2] for pair in pairs] == list(expected.items())
    np.testing.assert_allclose([pair[2] for pair in pairs], [float(iou[pair]) for pair in expected.items()], rtol=1e-9)


def test_very_many_boxes_that_nearly_equal_each_other_are_compared_with_the_first_only() -> None:
    # Among 20,000 boxes of about 10 × 10 there are 200 million pairs, all of them near duplicates.
    starts = np.random.default_rng(0).uniform(0, 0.1, (20_000, 2))
    pairs = list(near_duplicates(np.hstack([starts, starts + 10]), np.zeros(20_000, np.int64)))
    assert len(pairs) == 19_999
    assert {earlier for _, earlier, _ in pairs} == {0}
