"""Recall of proposals: cases worked out by hand, and a comparison with pycocotools' evaluation without classes."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from faster_rcnn.data.dataset import Sample
from faster_rcnn.evaluation.recall import proposal_recall, recall_table


def truth(boxes: list[list[float]] | np.ndarray, **more: np.ndarray) -> Sample:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(np.zeros((200, 200, 3), np.uint8), boxes, np.zeros(len(boxes), np.int64), **more)


def regions(boxes: list[list[float]]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_a_shifted_proposal_counts_at_the_iou_thresholds_that_it_reaches() -> None:
    # A 40 × 40 box moved by 5 has IoU 1400 / 1800 = 0.778. It reaches 0.50 … 0.75, six of the ten thresholds.
    result = proposal_recall([truth([[0, 0, 40, 40]])], [regions([[5, 0, 45, 40]])], (1,))
    assert result["by_number"] == {"1": {"R@0.5": 1.0, "R@0.7": 1.0, "AR": pytest.approx(0.6)}}
    assert result["by_iou"]["1"] == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert result["by_iou"]["iou"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def test_only_the_best_proposals_of_each_image_count() -> None:
    samples = [truth([[0, 0, 40, 40]]), truth([[0, 0, 40, 40]])]
    far = [100, 100, 140, 140]
    proposals = [regions([far, [0, 0, 40, 40]]), regions([far, far, [0, 0, 40, 40]])]
    result = proposal_recall(samples, proposals, (1, 2, 3))
    assert [result["by_number"][number]["R@0.5"] for number in ("1", "2", "3")] == [0.0, 0.5, 1.0]
    assert result["curve"]["number"] == [1, 2, 3]
    assert result["curve"]["AR"] == [0.0, 0.5, 1.0]
    assert result["proposals_per_picture"] == 2.5


def test_one_proposal_finds_only_one_object() -> None:
    # The two objects have an IoU of 32/48 with each other. One proposal overlaps both with an IoU above 0.5.
    objects = truth([[0, 0, 40, 40], [8, 0, 48, 40]])
    assert proposal_recall([objects], [regions([[4, 0, 44, 40]])], (1,))["by_number"]["1"]["R@0.5"] == 0.5
    twice = regions([[4, 0, 44, 40], [4, 0, 44, 40]])
    assert proposal_recall([objects], [twice], (2,))["by_number"]["2"]["R@0.5"] == 1.0


def test_crowds_and_difficult_objects_are_left_out() -> None:
    objects = truth(
        [[0, 0, 40, 40], [50, 50, 90, 90], [100, 100, 140, 140]],
        crowd=np.array([False, True, False]),
        difficult=np.array([False, False, True]),
    )
    result = proposal_recall([objects], [regions([[0, 0, 40, 40]])], (1,))
    assert result["objects"] == 1
    assert result["by_number"]["1"]["AR"] == 1.0


def test_an_image_without_proposals_lowers_recall_and_one_without_objects_does_not() -> None:
    samples = [truth([[0, 0, 40, 40]]), truth([]), truth([[0, 0, 40, 40]])]
    proposals = [regions([]), regions([[0, 0, 9, 9]]), regions([[0, 0, 40, 40]])]
    assert proposal_recall(samples, proposals, (100,))["by_number"]["100"]["R@0.5"] == 0.5


def test_samples_without_any_object_are_an_error() -> None:
    with pytest.raises(ValueError, match="contain no object"):
        proposal_recall([truth([])], [regions([])])


def random_case(seed: int, images: int, most: int) -> tuple[list[Sample], list[np.ndarray]]:
    """Crowded objects and random proposals, some of which are objects shifted by up to a third of their sides."""
    rng = np.random.default_rng(seed)

    def boxes(number: int) -> np.ndarray:
        corner = rng.uniform(0, 120, (number, 2))
        return np.concatenate([corner, corner + rng.uniform(8, 70, (number, 2))], axis=1).astype(np.float32)

    samples, proposals = [], []
    for _ in range(images):
        objects = boxes(int(rng.integers(0, 9)))
        rows = rng.integers(0, max(1, len(objects)), most // 4 if len(objects) else 0)
        sides = np.tile(objects[rows, 2:] - objects[rows, :2], 2)
        near = objects[rows] + sides * rng.uniform(-1 / 3, 1 / 3, (len(rows), 4))
        some = np.concatenate([near, boxes(most - len(near))])[rng.permutation(most)][: int(rng.integers(0, most + 1))]
        samples.append(truth(objects))
        proposals.append(some.astype(np.float32))
    return samples, proposals


def coco_recall(samples: list[Sample], proposals: list[np.ndarray], numbers: list[int]) -> np.ndarray:
    """The recall that pycocotools computes without classes: [10 thresholds, numbers]."""

    def xywh(box: np.ndarray) -> list[float]:
        x1, y1, x2, y2 = box.astype(np.float64).tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    annotations: list[dict] = []
    results: list[dict] = []
    for image, (sample, given) in enumerate(zip(samples, proposals, strict=True), start=1):
        for box in sample.boxes:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "bbox": xywh(box), "iscrowd": 0}
                | {"area": float(np.prod(xywh(box)[2:]))}
            )
        for rank, box in enumerate(given):
            results.append({"image_id": image, "category_id": 1, "bbox": xywh(box), "score": 1 - rank / 10_000})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": image, "height": 200, "width": 200} for image in range(1, len(samples) + 1)]
        coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1}]}
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        run.params.useCats = 0
        run.params.maxDets = numbers
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    return run.eval["recall"][:, 0, 0, :]


@pytest.mark.parametrize("seed", range(6))
def test_recall_at_every_threshold_and_ar_equal_those_of_pycocotools(seed: int) -> None:
    numbers = [1, 3, 10, 30, 100]
    samples, proposals = random_case(seed, images=12, most=120)
    wanted = coco_recall(samples, proposals, numbers)
    result = proposal_recall(samples, proposals, tuple(numbers))
    for column, number in enumerate(numbers):
        assert result["by_iou"][str(number)] == pytest.approx(wanted[:, column].tolist())
        assert result["by_number"][str(number)]["AR"] == pytest.approx(wanted[:, column].mean())
    assert 0.2 < result["by_number"]["100"]["R@0.5"] < 1  # the case must be neither trivial nor impossible


def test_the_papers_numbers_agree_with_pycocotools_too() -> None:
    samples, proposals = random_case(7, images=2, most=2000)
    wanted = coco_recall(samples, proposals, [100, 300, 1000, 2000])
    result = proposal_recall(samples, proposals)
    averages = [result["by_number"][number]["AR"] for number in ("100", "300", "1000", "2000")]
    assert averages == pytest.approx(wanted.mean(axis=0).tolist())


def test_the_table_lists_every_source_and_results_can_be_written_as_json() -> None:
    samples = [truth([[0, 0, 40, 40]])]
    one = proposal_recall(samples, [regions([[5, 0, 45, 40]])], (1, 100))
    table = recall_table({"grid": one, "network": one}).splitlines()
    assert table[0] == "| source | proposals | R@0.5 | R@0.7 | AR | mean per image |"
    assert table[2] == "| grid | 1 | 1.0000 | 1.0000 | 0.6000 | 1 |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| grid", "| grid", "| network", "| network"]
    assert json.loads(json.dumps(one)) == one
