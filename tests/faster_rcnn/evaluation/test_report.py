"""A report: what it writes, what it draws, and what its page shows."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.subset import Subset
from faster_rcnn.evaluation.measure import collect, measure
from faster_rcnn.evaluation.mistakes import KINDS
from faster_rcnn.evaluation.report import compare_sources, write_report
from faster_rcnn.proposal_sources.table import Regions


def unsteady(sample: Sample) -> Prediction:
    """Finds every second object, half of these with the wrong class, and one object that does not exist."""
    boxes = np.concatenate([sample.boxes[::2], np.array([[0, 0, 20, 20]], np.float32)])
    labels = np.append((sample.labels[::2] + np.arange(len(boxes) - 1) % 2) % 6, 0)
    return Prediction(boxes, np.linspace(0.95, 0.55, len(boxes), dtype=np.float32), labels, proposals=sample.boxes)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "evaluation"
    dataset = Shapes("val", length=6)
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "picture-00099.jpg").write_bytes(b"from an earlier evaluation")
    (out / "pictures" / "mine.jpg").write_bytes(b"not from an evaluation")
    truths, predictions = collect(dataset, unsteady)
    record = write_report(
        out, dataset, truths, predictions, {"target": "unsteady", "data": "shapes"}, 3, 0.5, ["a remark"]
    )
    assert record == {"target": "unsteady", "data": "shapes"} | measure(truths, predictions, dataset.labels)
    return out


def test_a_report_contains_metrics_tables_and_plots(report: Path) -> None:
    record = json.loads((report / "metrics.json").read_text())
    assert 0 < record["VOC_mAP"] < 1
    assert list(record["proposals"].values()) == [{"R@0.5": 1.0, "R@0.7": 1.0, "AR": 1.0}]
    for plot in ("precision_recall.png", "proposal_recall.png"):
        with Image.open(report / plot) as image:
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    rows = list(csv.DictReader((report / "recall.csv").open()))
    assert list(rows[0]) == ["source", "proposals", "R@0.5", "R@0.7", "AR", "given an image"]
    assert rows[0]["AR"] == "1.0000"
    assert (report / "recall.md").read_text().startswith("| source | proposals |")


def test_all_mistakes_are_listed_and_the_worst_of_each_kind_are_drawn(report: Path) -> None:
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


def test_the_page_states_the_remarks_the_limit_of_ap_and_the_threshold_of_every_mistake(report: Path) -> None:
    text = (report / "index.html").read_text()
    assert "<p>a remark</p>" in text
    assert "only the 100 best detections of a class in an image count" in text
    assert "Counted at a score threshold of 0.5" in text
    assert re.search(r"missed at threshold 0\.5: \d+", text)
    captions = [row["caption"] for row in csv.DictReader((report / "mistakes.csv").open())]
    assert captions
    assert all("threshold 0.5" in caption for caption in captions)


def test_drawings_are_spread_over_the_data_set_and_replace_only_earlier_drawings(report: Path) -> None:
    names = sorted(path.name for path in (report / "pictures").iterdir())
    assert names == ["mine.jpg", "picture-00000.jpg", "picture-00002.jpg", "picture-00005.jpg"]


def test_the_page_shows_every_image_of_the_report_and_no_other(report: Path) -> None:
    text = (report / "index.html").read_text()
    shown = set(re.findall(r'src="([^"]+)"', text))
    assert all((report / path).is_file() for path in shown)
    there = {str(path.relative_to(report)) for path in report.rglob("*") if path.suffix in (".png", ".jpg")}
    assert shown == there - {"pictures/mine.jpg"}
    assert "http" not in text  # the page loads nothing from other sites
    assert "<script" not in text


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


@pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")
def test_a_perfect_detector_on_real_photographs_has_no_mistakes(tmp_path: Path) -> None:
    dataset = open_dataset(f"voc:{os.environ['REAL_DATA_DIR']}/bccd", "val", skip_bad_boxes=True)
    first = Subset(dataset, 4)
    truths, predictions = collect(first, lambda one: Prediction(one.boxes, np.ones(len(one.labels)), one.labels))
    record = write_report(tmp_path, first, truths, predictions, {"target": "truth"}, 1, 0.5)
    assert record["VOC_mAP"] == record["AP"] == 1.0
    assert not list((tmp_path / "mistakes").iterdir())
