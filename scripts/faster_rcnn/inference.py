"""Detection from Python: loads a model of any kind and returns what the service would answer for an image.

The image is decoded, converted and resized by the service's own code. A published model is also run by the service's
engine, so its numbers are exactly the service's. A detector in PyTorch differs from its published graph by rounding.

D, P  detections and proposals of an image.  Boxes are x1, y1, x2, y2 in pixels of the upright original.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation.threshold import ASSUMED
from faster_rcnn.graph.exportable import Exportable, exportable
from faster_rcnn.graph.onnx_predictor import open_engine
from faster_rcnn.image_input import ImageInput, as_file
from faster_rcnn.prediction import geometry_of
from service.images.decode import decode
from service.images.fit import Canvas, Geometry, to_original


@dataclass(frozen=True)
class Detections:
    """What was found in an image, best first.

    boxes float32 [D, 4], scores float32 [D], labels: D names, label_indices int64 [D]: their indices in the model's
    labels;  proposals float32 [P, 4], objectness float32 [P]: the regions that the RoI head received;
    width, height: of the upright image;  warnings: words of `service.images.integrity.WARNINGS`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    label_indices: np.ndarray
    proposals: np.ndarray
    objectness: np.ndarray
    width: int
    height: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Raw:
    """The result of one image before the threshold. The arrays are as in `Detections`."""

    boxes: np.ndarray
    scores: np.ndarray
    label_indices: np.ndarray
    proposals: np.ndarray
    objectness: np.ndarray


Run = Callable[[Sequence[Canvas]], list[Raw]]


class Model:
    """A model that is ready to detect objects; `open_model` makes one.

    labels: the names of its classes;  score_threshold: detections below it are left out unless a call says otherwise;
    geometry: how images are prepared.
    """

    def __init__(self, run: Run, labels: Sequence[str], score_threshold: float, geometry: Geometry) -> None:
        self._run = run
        self.labels = tuple(labels)
        self.score_threshold = score_threshold
        self.geometry = geometry

    def detect(self, image: ImageInput, score_threshold: float | None = None) -> Detections:
        """What the model finds in one image.

        image: the path of a file; the bytes of a file; a Pillow image, whose EXIF orientation is applied; or an array
        [H, W], [H, W, 3] (RGB, not BGR) or [H, W, 4] (RGBA), uint8, or uint16 in the model's range of values.
        score_threshold: the lowest score to return; by default the model's.
        Raises ValueError, or its subclass `service.images.decode.ImageError`, for an image that cannot be used;
        OSError for a file that cannot be read.

        A decoded image lacks what its file says. For exactly the service's numbers give the path or the bytes: the
        service decodes a large JPEG at a part of its size.
        """
        return self.detect_batch([image], score_threshold)[0]

    def detect_batch(
        self, images: Sequence[ImageInput], score_threshold: float | None = None, batch_size: int = 8
    ) -> list[Detections]:
        """What the model finds in each image, in their order.

        At most `batch_size` images, which share a canvas, are run together. The other parameters and errors are as in
        `detect`. All images are decoded first; pass long lists in parts.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        if isinstance(images, str | bytes | PathLike | Image.Image | np.ndarray):
            raise ValueError("detect_batch needs a list of images; use detect for one image")
        threshold = self.score_threshold if score_threshold is None else score_threshold
        canvases = [decode(as_file(image), self.geometry) for image in images]
        found: dict[int, Detections] = {}
        for places in _batches(canvases, batch_size):
            batch = [canvases[place] for place in places]
            for place, canvas, raw in zip(places, batch, self._run(batch), strict=True):
                found[place] = self._detections(canvas, raw, threshold)
        return [found[place] for place in range(len(canvases))]

    def _detections(self, canvas: Canvas, raw: Raw, threshold: float) -> Detections:
        wanted = raw.scores >= threshold
        indices = raw.label_indices[wanted]
        return Detections(
            raw.boxes[wanted],
            raw.scores[wanted],
            [self.labels[index] for index in indices.tolist()],
            indices,
            raw.proposals,
            raw.objectness,
            canvas.width,
            canvas.height,
            canvas.warnings,
        )


def open_model(
    source: str | PathLike[str] | FasterRCNN | TorchvisionFasterRCNN,
    which: str | None = None,
    labels: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    white: int | None = None,
) -> Model:
    """Loads a model for detection.

    source: the folder of a training run, a checkpoint of one, the folder of a published version
    (`model_store/NAME/VERSION`), or a detector in PyTorch: of this project, or of torchvision;
    which: "best" or "last" checkpoint of a run; by default the best one, if there is one, as for `faster-rcnn export`;
    labels: for torchvision's detectors, the names of the classes without background;
    device: for detectors in PyTorch. A published model runs on a GPU if there is one, as in the service;
    white: the value that means white in images with 16 bits per channel; by default the model's.
    Raises FileNotFoundError if there is no model, ValueError if it cannot be used.
    """
    if isinstance(source, FasterRCNN | TorchvisionFasterRCNN):
        return _of_detector(exportable(source), labels, device, white)
    path = Path(source)
    if (path / "model.onnx").is_file():
        if which is not None or labels is not None or white is not None:
            raise ValueError(f"{path} is a published model; which, labels and white are for detectors in PyTorch")
        return _published(path)
    if versions := sorted(file.parent.name for file in path.glob("*/model.onnx")):
        raise ValueError(f"{path} holds the versions {', '.join(versions)}; name one, such as {path / versions[-1]}")
    state = read_checkpoint(path, which or best_or_last(path))
    if (trained := state.get("objective", "joint")) != "joint":
        raise ValueError(f"{path} has trained only the {trained} part, which cannot detect on its own")
    return _of_detector(build_detector(state), labels, device, white)


def _published(folder: Path) -> Model:
    engine = open_engine(folder)

    def run(canvases: Sequence[Canvas]) -> list[Raw]:
        return [
            Raw(one.boxes, one.scores, one.labels, one.proposals, one.objectness)
            for one in engine.run(canvases, threads=engine.thread_counts[-1])
        ]

    return Model(run, engine.card.labels, engine.card.score_threshold, engine.geometry)


def _of_detector(
    detector: Exportable, labels: Sequence[str] | None, device: str | torch.device, white: int | None
) -> Model:
    names = detector.labels if labels is None else labels
    if names is None or len(names) != detector.classes:
        given = "none" if names is None else str(len(names))
        raise ValueError(f"the detector has {detector.classes} classes without background, labels are for {given}")
    geometry = geometry_of(detector, white)
    module = detector.eval().to(device)

    def run(canvases: Sequence[Canvas]) -> list[Raw]:
        height, width = canvases[0].size
        images = np.zeros((len(canvases), height, width, 3), np.uint8)
        for row, canvas in enumerate(canvases):
            images[row, : canvas.pixels.shape[0], : canvas.pixels.shape[1]] = canvas.pixels
        sizes = np.array([canvas.pixels.shape[:2] for canvas in canvases], np.int64)
        with torch.no_grad():
            output = module(torch.from_numpy(images).to(device), torch.from_numpy(sizes).to(device))
        values = (each.cpu().numpy() for each in output[:-1])  # without `left_out`
        number, boxes, scores, indices, proposed, proposals, objectness = values
        return [
            Raw(
                to_original(boxes[row, : number[row]], canvas),
                scores[row, : number[row]],
                indices[row, : number[row]],
                to_original(proposals[row, : proposed[row]], canvas),
                objectness[row, : proposed[row]],
            )
            for row, canvas in enumerate(canvases)
        ]

    return Model(run, names, ASSUMED, geometry)


def _batches(canvases: Sequence[Canvas], size: int) -> Iterator[list[int]]:
    """The places of the images of each batch: of one canvas, at most `size`."""
    order = sorted(range(len(canvases)), key=lambda place: canvases[place].size)
    for _, group in groupby(order, key=lambda place: canvases[place].size):
        places = list(group)
        yield from (places[first : first + size] for first in range(0, len(places), size))
