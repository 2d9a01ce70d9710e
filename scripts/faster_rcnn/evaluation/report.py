"""The report of an evaluation: a folder with metrics, plots, tables, images, mistakes and a page that shows them."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.evaluation import page
from faster_rcnn.evaluation.coco import MAX_DETECTIONS
from faster_rcnn.evaluation.measure import measure, rounded, without_pixels
from faster_rcnn.evaluation.mistakes import KINDS, Mistake, find_mistakes
from faster_rcnn.evaluation.plots import plot_precision_recall, plot_recall
from faster_rcnn.evaluation.recall import MEASURES, proposal_recall, recall_rows, recall_table
from faster_rcnn.evaluation.sheets import draw_mistake, draw_overview, draw_sources
from faster_rcnn.evaluation.voc import voc_ap
from faster_rcnn.files import write_image, write_text
from faster_rcnn.proposal_sources.table import Regions

WORST_SHOWN = 12  # drawn mistakes of each kind
QUALITY = 85  # JPEG quality
TILES = ("AP", "AP50", "AP75", "VOC_mAP", "VOC_mAP_11", "AR100", "pictures", "objects")
RECALL_HEAD = ("source", "proposals", *MEASURES, "mean per image")
RECALL_CSV_HEAD = (*RECALL_HEAD[:-1], "given an image")


def write_report(
    out: Path,
    dataset: Dataset,
    truths: Sequence[Sample],
    predictions: Sequence[Prediction],
    about: dict[str, Any],
    images: int,
    threshold: float,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures predictions and writes the report; returns the content of `metrics.json`.

    The files are `metrics.json`, plots, `recall.csv`, `recall.md`, `mistakes.csv`, `pictures/`, `mistakes/` and
    `index.html`.

    truths, predictions: the result of `collect` for all of `dataset`;  about: what was measured and how, written before
    the metrics;  images: the number of images to draw, evenly spread over the data set;  threshold: mistakes are
    counted, and detections drawn, from this score on;  remarks: sentences that the page shows first, such as how the
    threshold was chosen.
    Raises ValueError if the samples have no object.
    """
    record = {**about, **measure(truths, predictions, dataset.labels)}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "metrics.json", json.dumps(record, indent=1) + "\n")
    plot_precision_recall(voc_ap(truths, predictions, dataset.labels), out / "precision_recall.png")
    sections = [_results(record, remarks)]
    if "proposals" in record:
        numbers = tuple(int(number) for number in record["proposals"])
        regions = [one.proposals for one in predictions if one.proposals is not None]
        sections.append(_write_recall(out, {"the detector's": proposal_recall(truths, regions, numbers)}))
    mistakes = find_mistakes(truths, predictions, dataset.labels, threshold)
    sections.append(_write_mistakes(out, dataset, mistakes, threshold))

    def overview(index: int) -> Image.Image:
        return draw_overview(dataset[index], predictions[index], dataset.labels, threshold, dataset.name(index))

    sections.append(_write_images(out / "pictures", dataset, images, overview))
    note = ", ".join(f"{key} {value}" for key, value in about.items())
    write_text(out / "index.html", page.page(f"Evaluation of {about['target']}", note, sections))
    return record


def compare_sources(
    out: Path, dataset: Dataset, tables: Mapping[str, Mapping[str, Regions]], about: dict[str, Any], images: int
) -> str:
    """Measures sources of proposals without a detector and writes a report; returns the table in `recall.md`.

    The files are `metrics.json`, `recall.csv`, `recall.md`, a plot, `pictures/` and `index.html`.

    tables: the results of `propose_for` for all of `dataset`, by the name of the source;  about, images: as in
    `write_report`.
    """
    out.mkdir(parents=True, exist_ok=True)
    indices = range(len(dataset))
    progress = tqdm(indices, desc="reading", unit="image", leave=False)
    truths = [without_pixels(dataset[index]) for index in progress]
    regions = {source: [table[dataset.name(index)].boxes for index in indices] for source, table in tables.items()}
    results = {source: proposal_recall(truths, boxes) for source, boxes in regions.items()}
    write_text(out / "metrics.json", json.dumps({**about, "sources": rounded(results)}, indent=1) + "\n")
    drawn = _write_images(
        out / "pictures",
        dataset,
        images,
        lambda index: draw_sources(dataset[index], {source: boxes[index] for source, boxes in regions.items()}),
    )
    note = ", ".join(f"{key} {value}" for key, value in about.items())
    write_text(out / "index.html", page.page("Recall of proposals", note, [_write_recall(out, results), drawn]))
    return recall_table(results)


def _results(record: dict[str, Any], remarks: Sequence[str]) -> str:
    rows = [
        [name, *(_number(record[key][name]) for key in ("AP_by_class", "VOC_AP_by_class", "VOC_AP_11_by_class"))]
        for name in record["AP_by_class"]
    ]
    return page.section(
        "Detections",
        f"AP is COCO's mean over IoU 0.50 to 0.95; only the {MAX_DETECTIONS} best detections of a class in an image "
        "count. VOC AP is at IoU 0.5, and all detections count: the area under the precision-recall curve, or the mean "
        "precision at eleven values of recall.",
        page.sentences(remarks),
        page.tiles({name: _number(record[name]) for name in TILES}),
        page.table(("class", "AP", "VOC AP (area)", "VOC AP (11 points)"), rows),
        page.image("precision_recall.png"),
    )


def _write_recall(out: Path, sources: dict[str, dict[str, Any]]) -> str:
    plot_recall(sources, out / "proposal_recall.png")
    write_text(out / "recall.md", recall_table(sources))
    rows = recall_rows(sources)
    _write_csv(out / "recall.csv", RECALL_CSV_HEAD, rows)
    return page.section(
        "Proposals",
        "R is the share of objects that the best proposals of each image cover; AR is its mean over IoU 0.50 to 0.95.",
        page.table(RECALL_HEAD, rows),
        page.image("proposal_recall.png"),
    )


def _write_mistakes(out: Path, dataset: Dataset, mistakes: Sequence[Mistake], threshold: float) -> str:
    """Writes all mistakes to `mistakes.csv`, and the worst of each kind to `mistakes/`, named by their overall rank."""
    _write_csv(
        out / "mistakes.csv",
        ("rank", "kind", "picture", "class", "severity", "x1", "y1", "x2", "y2", "caption"),
        [
            [str(rank), one.kind, dataset.name(one.image), dataset.labels[one.label], f"{one.severity:.4f}"]
            + [f"{corner:.1f}" for corner in one.box.tolist()]
            + [one.caption]
            for rank, one in enumerate(mistakes, start=1)
        ],
    )
    folder = _emptied(out / "mistakes", "mistake-*.jpg")
    counts, galleries = [], []
    progress = tqdm(KINDS, desc="drawing mistakes", unit="kind", leave=False)
    for kind in progress:
        of_kind = [(rank, one) for rank, one in enumerate(mistakes, start=1) if one.kind == kind]
        names = []
        for rank, mistake in of_kind[:WORST_SHOWN]:
            names.append(f"mistake-{rank:04d}-{kind.replace(' ', '-')}.jpg")
            drawn = draw_mistake(dataset[mistake.image], mistake, dataset.name(mistake.image))
            write_image(folder / names[-1], drawn, QUALITY)
        counts.append([kind, str(len(of_kind))])
        heading = f"{kind} at threshold {threshold:g}: {len(of_kind)}"
        galleries.append(page.gallery(heading, [f"{folder.name}/{name}" for name in names]))
    return page.section(
        "Mistakes",
        f"Counted at a score threshold of {threshold:g}: false detections with this score or more, and objects that no "
        f"such detection found. Shown are the {WORST_SHOWN} worst of each kind, with detections in red and objects in "
        "white. mistakes.csv lists all.",
        page.table(("kind", "number"), counts),
        *galleries,
    )


def _write_images(folder: Path, dataset: Dataset, number: int, draw: Callable[[int], Image.Image]) -> str:
    """Saves `number` drawings, for images evenly spread over the data set; `draw` returns the one for an index."""
    _emptied(folder, "picture-*.jpg")
    last = len(dataset) - 1
    chosen = np.unique(np.linspace(0, last, min(number, len(dataset))).round().astype(int))
    paths = []
    for index in tqdm(chosen.tolist(), desc="drawing images", unit="image", leave=False):
        paths.append(f"{folder.name}/picture-{index:05d}.jpg")
        write_image(folder.parent / paths[-1], draw(index), QUALITY)
    return page.section("Images", f"{len(paths)} of {len(dataset)} images.", *map(page.image, paths))


def _emptied(folder: Path, pattern: str) -> Path:
    """Creates the folder if necessary, and deletes the drawings of an earlier evaluation from it."""
    folder.mkdir(exist_ok=True)
    for earlier in folder.glob(pattern):
        earlier.unlink()
    return folder


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])
    write_text(path, text.getvalue())


def _number(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
