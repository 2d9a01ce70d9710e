"""C4 and C5: the answers on the device against PyTorch's on the CPU, and of a batch against each image alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.gpu.engines import full_batch, open_engine
from benchmarks.gpu.inputs import on_one_canvas, one_colour, photographs
from benchmarks.gpu.outcome import Finding, Row
from benchmarks.gpu.setup import EMBEDDED, Clock, Setup
from faster_rcnn.graph.comparison import (
    DETECTIONS,
    PROPOSALS,
    TO_ALONE,
    TO_PYTORCH,
    Boxes,
    Difference,
    Tolerance,
    compare,
)
from service.engine.engine import Engine, Result
from service.engine.model import Precision
from service.engine.providers import CPU
from service.images.fit import Canvas, to_original

BATCHES = (1, 2, 3, 8)


def against_pytorch(setup: Setup, clock: Clock) -> Finding:
    """C4: the torchvision model against PyTorch; our own, of which only graphs are published, against their graph.

    `export` has verified each of those graphs on the CPU against PyTorch.
    """
    found = Finding()
    engine = open_engine(setup, setup.torchvision)
    images = photographs(engine.geometry, setup.times(6, 2))
    expected = _by_pytorch(setup.torchvision, images)
    _compare_all(found, engine, images, expected, TO_PYTORCH["fp32"], "PyTorch", "strict")
    if setup.load(setup.torchvision).precision_for(setup.provider, "fp16") == "fp16":
        half = open_engine(setup, setup.torchvision, "fp16", few=True)
        images = photographs(half.geometry, len(images))  # of the same pixels, on the canvases of this engine
        _compare_all(found, half, images, expected, TO_PYTORCH["fp16"], "PyTorch", "fp16")
    for folder in [setup.torchvision] if setup.rehearsal else EMBEDDED:
        if clock.over():
            found.faults.append(f"there was no time for {folder.parent.name}")
            break
        engine = open_engine(setup, folder)
        images = photographs(engine.geometry, len(images))
        tolerance = _allowed(TO_PYTORCH["fp32"], theirs=setup.rehearsal)
        _compare_all(found, engine, images, _by_graph(setup, folder, images), tolerance, "the CPU", "strict")
    return found


def batch_against_alone(setup: Setup, clock: Clock) -> Finding:
    """C5: an image's answer does not depend on its batch, also if all its anchors tie."""
    found = Finding()
    for folder in (setup.torchvision, *EMBEDDED[: setup.times(2, 0)]):
        engine = open_engine(setup, folder)
        tolerance = _allowed(TO_ALONE["fp32"], folder == setup.torchvision)
        for canvas in engine.geometry.canvases[: setup.times(256, 2)]:
            if clock.over():
                found.faults.append(f"{_name(engine)}: there was no time for the canvases from {canvas} on")
                return found
            images = [one_colour(canvas), *on_one_canvas(canvas, max(BATCHES) - 1)]
            alone = [engine.run([image])[0] for image in images]
            full = min(max(BATCHES), full_batch(setup, engine, canvas))
            for n in sorted({*BATCHES, full}):
                if n > full:
                    break
                _compare_all(found, engine, images[:n], alone[:n], tolerance, "each image alone", "strict")
    found.rows = _worst(found.rows)
    return found


def _allowed(tolerance: Tolerance, theirs: bool) -> Tolerance:
    """Our own models rank their boxes alike everywhere, so none may be missing."""
    return tolerance if theirs else replace(tolerance, unmatched=0.0)


def _by_pytorch(folder: Path, canvases: Sequence[Canvas]) -> list[Result]:
    from benchmarks.gpu.subjects import load
    from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector

    detector = TorchvisionDetector(load(folder))
    answers = []
    for canvas in canvases:
        one = detector.alone_resized(canvas.pixels)
        d, p = int(one.num_detections), int(one.num_proposals)
        boxes, scores, labels = (np.asarray(values)[:d] for values in (one.boxes, one.scores, one.labels))
        proposals, objectness = (np.asarray(values)[:p] for values in (one.proposals, one.objectness))
        boxes, proposals = to_original(boxes, canvas), to_original(proposals, canvas)
        answers.append(Result(boxes, scores, labels, proposals, objectness))
    return answers


def _by_graph(setup: Setup, folder: Path, canvases: Sequence[Canvas]) -> list[Result]:
    engine = Engine(setup.load(folder), CPU)
    return [engine.run([canvas])[0] for canvas in canvases]


def _compare_all(
    found: Finding,
    engine: Engine,
    canvases: Sequence[Canvas],
    expected: Sequence[Result],
    tolerance: Tolerance,
    reference: str,
    precision: Precision,
) -> None:
    """Runs the canvases of each size as batches, and adds a row and the faults for every size."""
    for size in dict.fromkeys(canvas.size for canvas in canvases):
        places = [place for place, canvas in enumerate(canvases) if canvas.size == size]
        answers = engine.run([canvases[place] for place in places])
        difference, equal = Difference(), 0
        for place, answer in zip(places, answers, strict=True):
            equal += _equal(answer, expected[place])
            for kind in (DETECTIONS, PROPOSALS):
                one, other = _boxes(answer, expected[place], kind), _boxes(expected[place], answer, kind)
                difference = difference.plus(compare(one, other, tolerance))
        what = f"{_name(engine)} {precision}, N = {len(places)} on {size[0]}×{size[1]}"
        if difference.unmatched > tolerance.unmatched * difference.boxes:
            found.faults.append(
                f"{what}: {difference.unmatched} of {difference.boxes} boxes differ from {reference} by more than "
                f"{tolerance.box:g} pixels or {tolerance.score:g} of score, at worst {difference.missed_by:.3g} pixels"
            )
        found.figures[what] = {
            "unmatched": difference.unmatched,
            "boxes": difference.boxes,
            "equal": equal,
            "images": len(places),
        }
        row = Row(_name(engine), precision, f"against {reference}", len(places), size)
        found.rows.append(replace(row, unmatched=difference.unmatched, equal=equal / len(places)))


def _boxes(result: Result, other: Result, kind: str) -> Boxes:
    """The boxes of one kind. The lowest score that either answer shows stands for the limit that both had to pass."""
    if kind == DETECTIONS:
        cut = min((*result.scores[-1:], *other.scores[-1:]), default=0.0)
        return Boxes(result.boxes, result.scores, result.labels, float(max(cut, result.left_out, other.left_out)))
    cut = min((*result.objectness[-1:], *other.objectness[-1:]), default=0.0)
    return Boxes(result.proposals, result.objectness, np.zeros(len(result.objectness), np.int64), float(cut))


def _equal(one: Result, other: Result) -> bool:
    """Whether two answers are equal to the last bit."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("boxes", "scores", "labels", "proposals", "objectness")
    )


def _name(engine: Engine) -> str:
    return f"{engine.card.name}/{engine.card.version}"


def _worst(rows: Sequence[Row]) -> list[Row]:
    """One row for each model: the batch with the most unmatched boxes."""
    by_model: dict[str, Row] = {}
    for row in rows:
        known = by_model.get(row.model)
        if known is None or ((row.unmatched or 0), -(row.equal or 0)) > ((known.unmatched or 0), -(known.equal or 0)):
            by_model[row.model] = row
    return list(by_model.values())
