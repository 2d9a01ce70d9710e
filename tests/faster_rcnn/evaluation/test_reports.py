"""The kinds of mistakes, and what a report leaves behind."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.subset import Subset
from faster_rcnn.evaluation import collect, measure
from faster_rcnn.evaluation.mistakes import KINDS, Mistake, find_mistakes
from faster_rcnn.evaluation.page import gallery, page, section, table
from faster_rcnn.evaluation.plots import plot_precision_recall
from faster_rcnn.evaluation.report import compare_sources, write_report
from faster_rcnn.evaluation.voc import voc_ap
from faster_rcnn.proposal_sources.table import Regions

LABELS = ("cat", "dog")
CAT, DOG, NOWHERE = [10.0, 10, 50, 50], [60.0, 60, 90, 90], [0.0, 90, 9, 99]


def truth(boxes: list[list[float]], labels: list[int]) -> Sample:
    return Sample(np.zeros((100, 100, 3), np.uint8), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels))


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Prediction:
    return Prediction(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels))


def mistakes(*detections: tuple[list[float], float, int]) -> list[Mistake]:
    """Of detections in an image with a cat and a dog."""
    boxes, scores, labels = (list(column) for column in zip(*detections, strict=True)) if detections else ([], [], [])
    return find_mistakes([truth([CAT, DOG], [0, 1])], [found(boxes, scores, labels)], LABELS, 0.5)


RIGHT = ((CAT, 0.9, 0), (DOG, 0.9, 1))


def test_what_is_right_is_no_mistake() -> None:
    assert mistakes(*RIGHT) == []


@pytest.mark.parametrize(
    ("box", "label", "kind", "words"),
    [
        (NOWHERE, 0, "background", "nothing is there"),
        ([11, 10, 51, 50], 0, "duplicate", "found by a surer detection"),
        (DOG, 0, "wrong class", "it is a dog"),
        # 40 × 40 moved by 20: 20 · 40 / (2 · 1600 - 800) = 0.33
        ([30, 10, 70, 50], 0, "poor localisation", "0.33"),
        # 30 × 30 moved by 15 and taken for a cat: 15 · 30 / (2 · 900 - 450) = 0.33
        ([75, 60, 105, 90], 0, "background", "IoU with a dog is 0.33"),
    ],
)
def test_a_false_detection_is_of_its_kind(box: list[float], label: int, kind: str, words: str) -> None:
    [mistake] = mistakes(*RIGHT, (box, 0.7, label))
    assert mistake.kind == kind
    assert words in mistake.caption
    assert mistake.caption.startswith(f"{LABELS[label]} 0.70")
    assert mistake.severity == pytest.approx(0.7)
    assert mistake.box.tolist() == box


def test_an_unsure_detection_is_no_mistake_but_its_object_is_missed() -> None:
    [mistake] = mistakes((CAT, 0.9, 0), (DOG, 0.3, 1), (NOWHERE, 0.4, 1))
    assert (mistake.kind, LABELS[mistake.label]) == ("missed", "dog")
    assert mistake.severity == pytest.approx(0.7)  # 1 - 0.3
    assert "a score of 0.30 only" in mistake.caption


def test_a_missed_object_says_what_was_seen_in_its_place() -> None:
    kinds = {mistake.kind: mistake.caption for mistake in mistakes((CAT, 0.9, 0), (DOG, 0.8, 0))}
    assert set(kinds) == {"missed", "wrong class"}
    assert "detected as cat (IoU 1.00)" in kinds["missed"]
    blind = replace(found([], [], []), proposals=np.array([[60, 60, 90, 75]], np.float32))
    [missed] = find_mistakes([truth([DOG], [1])], [blind], LABELS, 0.5)
    assert missed.caption == "dog missed: no detection is near; the best proposal has IoU 0.50"
    assert missed.severity == 1.0


def test_the_worst_come_first() -> None:
    ranked = mistakes((NOWHERE, 0.6, 0), (NOWHERE, 0.8, 1), (DOG, 0.1, 1))
    # both objects are missed: the cat wholly (1), the dog but for 0.1 (0.9)
    assert [(one.kind, round(one.severity, 2)) for one in ranked] == [
        ("missed", 1.0),
        ("missed", 0.9),
        ("background", 0.8),
        ("background", 0.6),
    ]


def test_difficult_objects_and_crowds_are_not_missed_and_not_falsely_found() -> None:
    objects = replace(truth([CAT, DOG], [0, 0]), difficult=np.array([True, False]), crowd=np.array([False, True]))
    for prediction in (found([], [], []), found([CAT, CAT, [61, 61, 69, 69]], [0.9, 0.8, 0.7], [0, 0, 0])):
        assert find_mistakes([objects], [prediction], LABELS, 0.5) == []


def unsteady(sample: Sample) -> Prediction:
    """Finds every second object, one of them of the wrong class, and one that is not there."""
    boxes = np.concatenate([sample.boxes[::2], np.array([[0, 0, 20, 20]], np.float32)])
    labels = np.append((sample.labels[::2] + np.arange(len(boxes) - 1) % 2) % 6, 0)
    return Prediction(boxes, np.linspace(0.95, 0.55, len(boxes), dtype=np.float32), labels, proposals=sample.boxes)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "evaluation"
    dataset = Shapes("val", length=6)
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "picture-00099.jpg").write_bytes(b"of a former evaluation")
    (out / "pictures" / "mine.jpg").write_bytes(b"of someone else")
    truths, predictions = collect(dataset, unsteady)
    record = write_report(out, dataset, truths, predictions, {"target": "unsteady", "data": "shapes"}, images=3)
    assert record == {"target": "unsteady", "data": "shapes"} | measure(truths, predictions, dataset.labels)
    return out


def test_a_report_has_its_metrics_tables_and_plots(report: Path) -> None:
    record = json.loads((report / "metrics.json").read_text())
    assert 0 < record["VOC_mAP"] < 1
    assert list(record["proposals"].values()) == [{"R@0.5": 1.0, "R@0.7": 1.0, "AR": 1.0}]
    for plot in ("precision_recall.png", "proposal_recall.png"):
        with Image.open(report / plot) as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    rows = list(csv.DictReader((report / "recall.csv").open()))
    assert rows[0]["AR"] == "1.0000"
    assert (report / "recall.md").read_text().startswith("| source | proposals |")


def test_mistakes_are_listed_all_and_the_worst_of_each_kind_are_drawn(report: Path) -> None:
    rows = list(csv.DictReader((report / "mistakes.csv").open()))
    severities = [float(row["severity"]) for row in rows]
    assert severities == sorted(severities, reverse=True)
    assert {row["kind"] for row in rows} <= set(KINDS)
    assert {row["picture"] for row in rows} <= {f"val/0/{index}" for index in range(6)}
    drawn = sorted(path.name for path in (report / "mistakes").iterdir())
    for name in drawn:
        rank, kind = re.fullmatch(r"mistake-(\d+)-(.+)\.jpg", name).groups()
        assert rows[int(rank) - 1]["kind"] == kind.replace("-", " ")
    for kind in {row["kind"] for row in rows}:
        of_kind = sum(row["kind"] == kind for row in rows)
        assert sum(kind.replace(" ", "-") in name for name in drawn) == min(12, of_kind)


def test_images_are_spread_over_the_data_and_only_former_ones_are_removed(report: Path) -> None:
    names = sorted(path.name for path in (report / "pictures").iterdir())
    assert names == ["mine.jpg", "picture-00000.jpg", "picture-00002.jpg", "picture-00005.jpg"]


def test_the_page_shows_everything_and_names_nothing_that_is_not_there(report: Path) -> None:
    text = (report / "index.html").read_text()
    shown = set(re.findall(r'src="([^"]+)"', text))
    assert all((report / path).is_file() for path in shown)
    there = {str(path.relative_to(report)) for path in report.rglob("*") if path.suffix in (".png", ".jpg")}
    assert shown == there - {"pictures/mine.jpg"}
    assert "http" not in text  # nothing is loaded from elsewhere
    assert "<script" not in text


def test_names_from_the_data_cannot_break_the_page() -> None:
    text = page("<b>", "a & b", [section("<h>", "", table(["<c>"], [["<d>"]])), gallery("<e>", ['"><script>'])])
    assert not re.search(r"<(b|h|c|d|e|script)>", text)
    assert "a &amp; b" in text


def test_a_class_that_nothing_is_detected_of_has_its_panel(tmp_path: Path) -> None:
    plot_precision_recall(voc_ap([truth([CAT], [0])], [found([], [], [])], LABELS), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_sources_of_proposals_are_compared_side_by_side(tmp_path: Path) -> None:
    dataset = Subset(Shapes("val"), 4)
    names = [dataset.name(index) for index in range(len(dataset))]
    exact = {
        name: Regions(dataset[i].boxes, np.ones(len(dataset[i].boxes), np.float32)) for i, name in enumerate(names)
    }
    blind = {name: Regions(np.array([[0, 0, 1, 1]], np.float32), np.ones(1, np.float32)) for name in names}
    text = compare_sources(tmp_path, dataset, {"exact": exact, "blind": blind}, {"data": "shapes"}, images=2)
    assert "| exact | 100 | 1.0000 | 1.0000 | 1.0000 |" in text
    assert "| blind | 2000 | 0.0000 | 0.0000 | 0.0000 | 1 |" in text
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["sources"]["exact"]["by_number"]["300"]["AR"] == 1.0
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert "proposal_recall.png" in (tmp_path / "index.html").read_text()


@pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR names no folder with bccd")
def test_a_report_of_real_photographs(tmp_path: Path) -> None:
    dataset = open_dataset(f"voc:{os.environ['REAL_DATA_DIR']}/bccd", "val", skip_bad_boxes=True)
    first = Subset(dataset, 4)
    truths, predictions = collect(first, lambda one: Prediction(one.boxes, np.ones(len(one.labels)), one.labels))
    record = write_report(tmp_path, first, truths, predictions, {"target": "truth"}, images=1)
    assert record["VOC_mAP"] == record["AP"] == 1.0
    assert not list((tmp_path / "mistakes").iterdir())
