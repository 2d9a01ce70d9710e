"""Verifies an exported graph before it can be published: runs it in ONNX Runtime and compares its answers.

Each image's answer in a batch must agree with PyTorch's answer for that image alone, and with the graph's own answer
for that image alone on its smallest canvas. A float32 graph of a model that ranks its boxes by their last bits may
differ more often, if PyTorch's float32 answers differ from its float64 answers as well (`rounding.py`).

N  images in a batch.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from tqdm import tqdm

from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.detector.resize import ResizeRule, resize_image
from faster_rcnn.graph.agreement import Agreement, Answer, References, Tolerances
from faster_rcnn.graph.comparison import (
    DETECTIONS,
    PROPOSALS,
    TO_ALONE,
    TO_PYTORCH,
    Difference,
    Disagreement,
    Tolerance,
)
from faster_rcnn.graph.export import INPUTS, OUTPUTS, Provider
from faster_rcnn.graph.exportable import Exportable
from faster_rcnn.graph.placement import check_placement
from faster_rcnn.graph.precision import Precision
from faster_rcnn.graph.rounding import Rounding, answers_in_float64, judge, one_colour
from service.engine.providers import CPU, open_session, session_options

Size = tuple[int, int]  # height, width

BATCH_SIZES = (1, 2, 3, 8)
# In pixels of the canvas. Canvases larger than LARGE_CANVAS take seconds each, so fewer canvases and images are tried.
# Batches larger than LARGE_BATCH take gigabytes, so they are tried on the smallest canvas only.
LARGE_CANVAS = 500_000
LARGE_BATCH = 4_000_000
IMAGES_ON_LARGE = 6
EXTREME_SIZES: tuple[Size, ...] = ((1, 1), (1, 30), (30, 1), (7, 100))  # before resizing


@dataclass(frozen=True)
class Verification:
    """What was compared and the largest differences, for `model.json`.

    rounding: of detections and proposals, compared with float64, if float32 alone did not decide; else empty.
    why_float64: the first difference from float32 that was too large; "" if there was none.
    """

    pictures: int  # images; the name is the key in `model.json`
    batches: int
    boxes_compared: int
    to_pytorch: Difference
    to_alone: Difference
    rounding: dict[str, Rounding] = field(default_factory=dict)
    why_float64: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: an infinite `missed_by` becomes None."""
        values: dict[str, Any] = _finite(asdict(self))
        if not self.rounding:
            del values["rounding"], values["why_float64"]
        return values

    def remark(self) -> str:
        """One line about a graph that was compared with float64; empty for all others."""
        if not self.rounding:
            return ""
        figures = "; ".join(
            f"{kind}: {one.pytorch.unmatched} of {one.pytorch.boxes} for PyTorch in float32, "
            f"{one.graph.unmatched} of {one.graph.boxes} for the graph ({one.allowed} allowed)"
            for kind, one in self.rounding.items()
        )
        if any(one.pytorch.unmatched for one in self.rounding.values()):
            head = "this model is sensitive to rounding, so its graph was compared with PyTorch in float64"
        else:
            head = (
                "this model is not sensitive to rounding, but its graph was compared with PyTorch in float64, because "
                f"in float32 too many boxes had no partner ({self.why_float64})"
            )
        return (
            f"{head}. Boxes of one of the two answers without a partner in the other, in images of more than one "
            f"colour: {figures}"
        )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Verifier:
    """Verifies graphs of one detector. PyTorch's answers are computed once, for all of them."""

    def __init__(self, detector: Exportable, canvases: Sequence[Size], images: Sequence[np.ndarray]) -> None:
        """Images of extreme shapes and a blank image are added to `images`.

        images: uint8 [H, W, 3], before resizing; for each canvas at least one must fit it.
        """
        if max(height * width for height, width in canvases) > LARGE_CANVAS:
            # the smallest canvas, and the two largest: one is wide, the other tall
            canvases, images = [canvases[0], *canvases[1:][-2:]], images[:IMAGES_ON_LARGE]
        self.detector = detector.eval().cpu()
        self.canvases = canvases
        self.images = _resized(images, detector.resize)
        self.batches = list(_batches(self.images, canvases))

    def verify(
        self, path: Path, precision: Precision = "fp32", provider: Provider = "any", run_on: str = CPU
    ) -> Verification:
        """Runs a graph with N = 1, 2, 3 and 8 on every canvas, with noise around the images, and compares the answers.

        precision: of the graph, while the detector computes in float32;  provider: which providers must compute all of
        the graph;  run_on: the provider of ONNX Runtime that runs it now.
        Raises Disagreement if an answer differs from the expected one, Misplaced if under CUDA the CPU would compute
        features.
        """
        if provider == "any":
            check_placement(path)
        session = _session(path, precision, run_on)
        alone = [_alone(session, image, self.canvases) for image in tqdm(self.images, "ONNX, each alone", leave=False)]
        answers = list(_answers(session, self.images, self.batches))
        stable = self.detector.stable_ranking and precision == "fp32"
        tolerances = Tolerances(*(_tolerance(one[precision], stable) for one in (TO_PYTORCH, TO_ALONE)))
        references = References(
            self._by_pytorch,
            alone,
            self.detector.score_floor,
            blanks=frozenset() if stable else {len(self.images) - 1},
        )
        sensitive = precision == "fp32" and not stable
        agreement = Agreement(answers, references, tolerances, by_kind=sensitive)
        rounding: dict[str, Rounding] = {}
        why = ""
        try:
            agreement.check()
        except Disagreement as error:
            if not sensitive or (exact := self._in_float64) is None:
                raise
            of_one_colour = {place for place, image in enumerate(self.images) if one_colour(image)}
            rounding = judge(answers, replace(references, blanks=of_one_colour), exact, tolerances)
            why = str(error)
        return Verification(
            len(self.images),
            len(self.batches),
            agreement.boxes,
            agreement.to_pytorch,
            agreement.to_alone,
            rounding,
            why,
        )

    @functools.cached_property
    def _by_pytorch(self) -> list[DetectorOutput]:
        return [self.detector.alone_resized(image) for image in tqdm(self.images, "PyTorch, each alone", leave=False)]

    @functools.cached_property
    def _in_float64(self) -> list[DetectorOutput] | None:
        return answers_in_float64(self.detector, self.images)


def verify(
    path: Path,
    detector: Exportable,
    canvases: Sequence[Size],
    images: Sequence[np.ndarray],
    precision: Precision = "fp32",
    provider: Provider = "any",
) -> Verification:
    """Verifies one graph on the CPU. The arguments and errors are those of `Verifier`."""
    return Verifier(detector, canvases, images).verify(path, precision, provider)


def _session(path: Path, precision: Precision, provider: str) -> onnxruntime.InferenceSession:
    """A session on one provider. On CUDA it has the service's options, so that it computes as the service does."""
    if provider == CPU:
        return onnxruntime.InferenceSession(str(path), providers=[CPU])
    whole = onnx.load(path).SerializeToString()  # with the weights that it may share
    return open_session(whole, provider, session_options(threads=1), tf32=precision == "fp16")


def _answers(
    session: onnxruntime.InferenceSession, images: Sequence[np.ndarray], batches: Sequence["_Batch"]
) -> Iterator[Answer]:
    """The graph's answers in batches, whose form is checked."""
    for batch in tqdm(batches, "ONNX, batches", leave=False):
        found = _in_onnx(session, [images[place] for place in batch.places], batch.canvas, batch.noise)
        for place, one in zip(batch.places, found, strict=True):
            where = f"image {place} in a batch of {len(batch.places)} on canvas {batch.canvas[0]}×{batch.canvas[1]}"
            _check_form(one, images[place].shape[:2], where)
            yield Answer(place, where, one)


def _tolerance(usual: Tolerance, stable_ranking: bool) -> Tolerance:
    """If both rank their boxes alike, no box may be missing."""
    return replace(usual, unmatched=0.0) if stable_ranking else usual


def _resized(images: Sequence[np.ndarray], rule: ResizeRule) -> list[np.ndarray]:
    """The images as the detector sees them, then images of extreme shapes, and last a blank one."""
    resized = [resize_image(image, rule)[0] for image in images]
    resized += [_noise(*rule(height, width)) for height, width in EXTREME_SIZES]
    return [*resized, np.full((rule.min_size, rule.min_size, 3), 127, np.uint8)]


@dataclass(frozen=True)
class _Batch:
    """places: of its images;  noise: generates the bytes around them."""

    places: list[int]
    canvas: Size
    noise: np.random.Generator


def _batches(images: Sequence[np.ndarray], canvases: Sequence[Size]) -> Iterator[_Batch]:
    """Batches of every size, on every canvas and on one that is larger than all of them.

    Every batch of more than one image holds the blank image, which is the last.
    """
    rng = np.random.default_rng(0)
    largest = max(max(canvas) for canvas in canvases)
    for height, width in [*canvases, (largest, largest)]:
        fitting = [n for n, image in enumerate(images) if image.shape[0] <= height and image.shape[1] <= width]
        for size in BATCH_SIZES:
            if size * height * width > LARGE_BATCH and size > 1 and (height, width) != canvases[0]:
                continue
            places = rng.choice(fitting, size - 1).tolist()
            places.insert(int(rng.integers(size)), len(images) - 1 if size > 1 else int(rng.choice(fitting)))
            yield _Batch(places, (height, width), rng)


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _alone(session: onnxruntime.InferenceSession, image: np.ndarray, canvases: Sequence[Size]) -> DetectorOutput:
    """The graph's answer for an image by itself, on the smallest canvas that holds it, with zeros around it."""
    height, width = image.shape[:2]
    fitting = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
    if not fitting:
        raise Disagreement(f"no canvas of {list(canvases)} holds an image resized to {height}×{width}")
    smallest = min(fitting, key=lambda canvas: canvas[0] * canvas[1])
    return _in_onnx(session, [image], smallest, None)[0]


def _in_onnx(
    session: onnxruntime.InferenceSession,
    images: Sequence[np.ndarray],
    canvas: Size,
    noise: np.random.Generator | None,
) -> list[DetectorOutput]:
    """The graph's answers, one for each image; arrays without the batch dimension."""
    shape = (len(images), *canvas, 3)
    batch = np.zeros(shape, np.uint8) if noise is None else noise.integers(0, 256, shape, dtype=np.uint8)
    for place, image in enumerate(images):
        batch[place, : image.shape[0], : image.shape[1]] = image
    sizes = np.array([image.shape[:2] for image in images], np.int64)
    values = session.run(list(OUTPUTS), dict(zip(INPUTS, (batch, sizes), strict=True)))
    return [DetectorOutput(*(value[place] for value in values)) for place in range(len(images))]


def _check_form(answer: DetectorOutput, size: tuple[int, ...], where: str) -> None:
    """Raises Disagreement if the rows of an answer break the contract.

    Counts are in range, rows are sorted by score, boxes lie inside the image, rows past the count are zero, no value
    is NaN.
    """
    height, width = size
    for kind, count, boxes, scores, others in (
        (DETECTIONS, answer.num_detections, answer.boxes, answer.scores, [answer.labels]),
        (PROPOSALS, answer.num_proposals, answer.proposals, answer.objectness, []),
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
