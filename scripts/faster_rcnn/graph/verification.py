"""Does a written `model.onnx` keep its promises? It is run in ONNX Runtime and compared, before anyone may serve it.

N  images in a batch;  R  boxes of one image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tqdm import tqdm

from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN
from faster_rcnn.detector.resize import resize_image
from faster_rcnn.graph.export import INPUTS, OUTPUTS, Exportable, Provider
from faster_rcnn.graph.placement import check_placement
from faster_rcnn.graph.precision import Precision

BATCH_SIZES = (1, 2, 3, 8)
# Pixels of canvas. With larger canvases, which cost seconds each, fewer of them and fewer images are tried, and no
# batch of a larger sum, which costs gigabytes, but for the smallest canvas.
LARGE_CANVAS = 500_000
LARGE_BATCH = 4_000_000
IMAGES_ON_LARGE = 6
EXTREME_SIZES = ((1, 1), (1, 30), (30, 1), (7, 100))  # height, width before resizing


@dataclass(frozen=True)
class Tolerance:
    """How far two answers may differ: corners in pixels of the canvas, scores in probability.

    unmatched: the share of all boxes that may be without a partner. Between two runtimes, which differ in the last
    bits, an overlap on the edge of the suppression now and then decides otherwise.
    """

    box: float
    score: float
    unmatched: float = 0.0


TO_PYTORCH: dict[Precision, Tolerance] = {"fp32": Tolerance(0.1, 1e-3, 0.005), "fp16": Tolerance(2.0, 0.05, 0.05)}
# On another canvas the last bits may differ, on a pyramid by where its maps stand on RoIAlign's sheet: that turns over
# what ties, and in float16 may round to the neighbouring number. Padding that leaks moves a box in ten.
TO_ALONE: dict[Precision, Tolerance] = {"fp32": Tolerance(0.01, 1e-4, 0.002), "fp16": Tolerance(0.1, 1e-3, 0.002)}


class Disagreement(ValueError):  # noqa: N818  the word for it
    """The graph does not answer what it must; the message says where and by how much."""


@dataclass(frozen=True)
class Boxes:
    """boxes [R, 4], scores [R], labels [R];  cut: the score that the last one to be kept had to pass."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    cut: float


@dataclass(frozen=True)
class Difference:
    """The largest differences of matched boxes, how many boxes have no partner, and how far the nearest box of the
    same label lies from the one that misses its partner most: infinity where there is none."""

    box: float = 0.0
    score: float = 0.0
    unmatched: int = 0
    missed_by: float = 0.0

    def plus(self, other: "Difference") -> "Difference":
        """Of both together."""
        return Difference(
            max(self.box, other.box),
            max(self.score, other.score),
            self.unmatched + other.unmatched,
            max(self.missed_by, other.missed_by),
        )


@dataclass(frozen=True)
class Verification:
    """What was compared and how far apart it was; goes into `model.json`."""

    pictures: int
    batches: int
    boxes_compared: int
    to_pytorch: Difference
    to_alone: Difference

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it, which has no infinity."""
        values = asdict(self)
        for difference in (values["to_pytorch"], values["to_alone"]):
            if not math.isfinite(difference["missed_by"]):
                difference["missed_by"] = None
        return values


def compare(first: Boxes, second: Boxes, tolerance: Tolerance) -> Difference:
    """Matches boxes of the same label, nearest first, whatever their order: equal scores have no order.

    A box without a partner within the tolerance counts, unless its score is so near the cut that the other answer may
    have dropped it.
    """
    distance = np.abs(first.boxes[:, None] - second.boxes[None]).max(axis=2, initial=0.0)
    distance = np.where(first.labels[:, None] == second.labels[None], distance, np.inf)
    gap = np.abs(first.scores[:, None] - second.scores[None])
    # the score decides between boxes that lie equally near
    cost = np.where((distance <= tolerance.box) & (gap <= tolerance.score), distance + gap, np.inf)
    free_first, free_second = np.ones(len(first.boxes), bool), np.ones(len(second.boxes), bool)
    box = score = 0.0
    for place in np.argsort(cost, axis=None):
        i, j = np.unravel_index(place, cost.shape)
        if not np.isfinite(cost[i, j]):
            break
        if free_first[i] and free_second[j]:
            free_first[i] = free_second[j] = False
            box, score = max(box, float(distance[i, j])), max(score, float(gap[i, j]))
    cut = max(first.cut, second.cut) + tolerance.score
    lone_first, lone_second = free_first & (first.scores > cut), free_second & (second.scores > cut)
    nearest = np.concatenate(
        [distance[lone_first].min(axis=1, initial=np.inf), distance[:, lone_second].min(axis=0, initial=np.inf)]
    )
    return Difference(box, score, len(nearest), float(nearest.max(initial=0.0)))


def verify(
    path: Path,
    detector: Exportable,
    canvases: Sequence[tuple[int, int]],
    pictures: Sequence[np.ndarray],
    precision: Precision = "fp32",
    provider: Provider = "any",
) -> Verification:
    """Runs the graph at N = 1, 2, 3 and 8 on every canvas, a blank image among them, rubbish around them.

    Images of extreme shapes are added. Each answer is compared with PyTorch on that image alone, and with the
    graph on that image alone.
    images: uint8 [H, W, 3], at least one that fits each canvas;  precision: the graph's, the detector's is fp32;
    provider: what the graph is for.
    Raises Disagreement if a promise is broken, Misplaced if CUDA would leave more than shape arithmetic to the CPU.
    """
    if provider == "any":
        check_placement(path)
    detector = detector.eval().cpu()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rule = detector.resize
    large = max(height * width for height, width in canvases) > LARGE_CANVAS
    if large:  # the smallest, and the two largest, which lie and stand
        canvases, pictures = [canvases[0], *canvases[1:][-2:]], pictures[:IMAGES_ON_LARGE]
    resized = [resize_image(image, rule)[0] for image in pictures]
    resized += [_noise(*rule(height, width)) for height, width in EXTREME_SIZES]
    resized.append(np.full((rule.min_size, rule.min_size, 3), 127, np.uint8))
    by_pytorch = [detector.alone(image) for image in tqdm(resized, "PyTorch, each alone", leave=False)]
    alone = [
        _in_onnx(session, [image], _smallest(canvases, image), None)[0]
        for image in tqdm(resized, "ONNX, each alone", leave=False)
    ]
    limits = {"detections": detector.score_floor, "proposals": 0.0}
    # this project's detectors rank by rounded margins and draw no ties: none of their float32 boxes may be missed
    strict = isinstance(detector, FasterRCNN) and precision == "fp32"
    tolerances = (
        replace(one[precision], unmatched=0.0) if strict else one[precision] for one in (TO_PYTORCH, TO_ALONE)
    )
    to_pytorch, to_alone = (_Comparison(*pair) for pair in zip(("PyTorch", "ONNX"), tolerances, strict=True))
    batches = list(_batches(resized, canvases))
    for batch in tqdm(batches, "ONNX, batches", leave=False):
        members = [resized[place] for place in batch.places]
        answers = _in_onnx(session, members, batch.canvas, batch.rubbish)
        for place, member, answer in zip(batch.places, members, answers, strict=True):
            where = f"image {place} in a batch of {len(batch.places)} on canvas {batch.canvas[0]}×{batch.canvas[1]}"
            _check_form(answer, member.shape[:2], where)
            for kind in ("detections", "proposals"):
                found = _boxes(answer, kind, limits)
                of_pytorch = _boxes(by_pytorch[place], kind, limits)
                if strict or member is not resized[-1]:
                    to_pytorch.add(found, of_pytorch, f"{kind} of {where}")
                elif kind == "proposals":
                    to_pytorch.add_blank(found, of_pytorch, f"{kind} of {where}")
                to_alone.add(found, _boxes(alone[place], kind, limits), f"{kind} of {where}")
    to_pytorch.check()
    to_alone.check()
    return Verification(len(resized), len(batches), to_alone.boxes, to_pytorch.total, to_alone.total)


class _Comparison:
    """The comparisons with one reference so far."""

    def __init__(self, reference: str, tolerance: Tolerance) -> None:
        self.reference, self.tolerance = reference, tolerance
        self.boxes = 0
        self.total = Difference()
        self._worst, self._where = Difference(), ""

    def add(self, found: Boxes, wanted: Boxes, what: str) -> None:
        """One image's boxes."""
        self._add(compare(found, wanted, self.tolerance), len(found.boxes), what)

    def add_blank(self, found: Boxes, wanted: Boxes, what: str) -> None:
        """Proposals in an image of one colour, in whose middle all anchors tie, so that each runtime keeps others, and
        by them suppresses others: only the best score can be compared."""
        best = [float(one.scores[0]) if len(one.scores) else 0.0 for one in (found, wanted)]
        self._add(Difference(score=abs(best[0] - best[1])), 1, what)

    def _add(self, difference: Difference, boxes: int, what: str) -> None:
        if difference.score > self.tolerance.score:
            raise Disagreement(
                f"{what} against {self.reference} alone: scores differ by up to {difference.score:.2g}, "
                f"{self.tolerance.score:.2g} is allowed"
            )
        self.boxes += boxes
        self.total = self.total.plus(difference)
        if difference.unmatched > self._worst.unmatched:
            self._worst, self._where = difference, what

    def check(self) -> None:
        """Raises Disagreement if too many boxes had no partner, naming where most did."""
        if self.total.unmatched > self.tolerance.unmatched * self.boxes:
            raise Disagreement(
                f"{self._where} against {self.reference} alone: {self._worst.unmatched} boxes have no partner within "
                f"{self.tolerance.box} pixels and {self.tolerance.score:g} of score, the worst misses by "
                f"{self._worst.missed_by:.3g} ({self.total.unmatched} of {self.boxes} boxes in all)"
            )


@dataclass(frozen=True)
class _Batch:
    places: list[int]
    canvas: tuple[int, int]
    rubbish: np.random.Generator


def _batches(pictures: Sequence[np.ndarray], canvases: Sequence[tuple[int, int]]) -> Iterator[_Batch]:
    """Batches of every size on every canvas, and on one that is larger than any; the blank image is in each but
    some of one."""
    rng = np.random.default_rng(0)
    largest = max(max(canvas) for canvas in canvases)
    for height, width in [*canvases, (largest, largest)]:
        fitting = [n for n, image in enumerate(pictures) if image.shape[0] <= height and image.shape[1] <= width]
        for size in BATCH_SIZES:
            if size * height * width > LARGE_BATCH and size > 1 and (height, width) != canvases[0]:
                continue
            places = rng.choice(fitting, size - 1).tolist()
            places.insert(int(rng.integers(size)), len(pictures) - 1 if size > 1 else int(rng.choice(fitting)))
            yield _Batch(places, (height, width), rng)


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _smallest(canvases: Sequence[tuple[int, int]], image: np.ndarray) -> tuple[int, int]:
    height, width = image.shape[:2]
    fitting = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
    if not fitting:
        raise Disagreement(f"no canvas of {list(canvases)} holds an image resized to {height}×{width}")
    return min(fitting, key=lambda canvas: canvas[0] * canvas[1])


def _in_onnx(
    session: onnxruntime.InferenceSession,
    pictures: Sequence[np.ndarray],
    canvas: tuple[int, int],
    rubbish: np.random.Generator | None,
) -> list[DetectorOutput]:
    """The graph's answers, one for each image; arrays without the batch dimension."""
    feed = dict(zip(INPUTS, _pack(pictures, canvas, rubbish), strict=True))
    values = session.run(list(OUTPUTS), feed)
    return [DetectorOutput(*(value[place] for value in values)) for place in range(len(pictures))]


def _pack(
    pictures: Sequence[np.ndarray], canvas: tuple[int, int], rubbish: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(pictures), *canvas, 3)
    images = np.zeros(shape, np.uint8) if rubbish is None else rubbish.integers(0, 256, shape, dtype=np.uint8)
    for place, image in enumerate(pictures):
        images[place, : image.shape[0], : image.shape[1]] = image
    return images, np.array([image.shape[:2] for image in pictures], np.int64)


def _boxes(answer: DetectorOutput, kind: str, cuts: dict[str, float]) -> Boxes:
    if kind == "detections":
        count = int(answer.num_detections)
        boxes, scores, labels = np.asarray(answer.boxes), np.asarray(answer.scores), np.asarray(answer.labels)
    else:
        count = int(answer.num_proposals)
        boxes, scores = np.asarray(answer.proposals), np.asarray(answer.objectness)
        labels = np.zeros(len(scores), np.int64)
    full = count == len(scores)
    cut = float(scores.min()) if full and count else cuts[kind]
    return Boxes(boxes[:count], scores[:count], labels[:count], cut)


def _check_form(answer: DetectorOutput, size: tuple[int, ...], where: str) -> None:
    """Counts in range, rows best first, boxes inside the image, zeros past the count, no NaN."""
    height, width = size
    for kind, count, boxes, scores, others in (
        ("detections", answer.num_detections, answer.boxes, answer.scores, [answer.labels]),
        ("proposals", answer.num_proposals, answer.proposals, answer.objectness, []),
    ):
        values = [np.asarray(one) for one in (boxes, scores, *others)]
        number = int(count)
        faults = {
            "their count is out of range": not 0 <= number <= len(values[1]),
            "a value is not finite": not all(np.isfinite(one).all() for one in values),
            "scores are not best first": bool((np.diff(values[1]) > 0).any()),
            "a box leaves the image": bool(
                (values[0] < 0).any() or (values[0][:, 0::2] > width).any() or (values[0][:, 1::2] > height).any()
            ),
            "rows past the count are not zero": any(one[number:].any() for one in values),
        }
        for fault, found in faults.items():
            if found:
                raise Disagreement(f"{kind} of {where}: {fault}")
