"""Publishes a detector to `model_store/<name>/<version>/`: exports, verifies and measures it, then moves it into place.

The store never shows an incomplete version.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.label_names import distinct
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import canvases
from faster_rcnn.detector.limits import limits_of
from faster_rcnn.evaluation import Predictor, collect, measure
from faster_rcnn.evaluation.drawing import draw_prediction
from faster_rcnn.graph.exportable import Exportable, exportable
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.served_threshold import ServedThreshold, Validation, on_validation, without_data
from faster_rcnn.graph.translations import OPSET
from faster_rcnn.graph.verification import Verifier
from faster_rcnn.graph.version_graphs import GraphOptions, write_graphs
from service.engine.card import NAME

EXAMPLES = 48  # images from which the example is chosen
GENERATED_IMAGES = 12  # generated images to verify on, if the caller passes none
DEFAULT_OPTIONS = GraphOptions()
TOOLS = ("torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow")


@dataclass(frozen=True)
class Measurement:
    """What a published graph is measured on.

    name: of `data`, as the card shows it;  limit: measure on the first images only;  example: whether one image of the
    data, and the detections in it, are published beside the model;  validation: the data on which the served threshold
    is chosen, by default the same.
    """

    data: Dataset
    name: str
    limit: int | None = None
    example: bool = True
    validation: Validation | None = None


def next_version(store: Path, name: str) -> int:
    """One more than the highest version of a model in the store."""
    there = [int(entry.name) for entry in (store / name).glob("*") if entry.name.isdecimal()]
    return max(there, default=0) + 1


def publish(
    detector: Exportable | TorchvisionFasterRCNN,
    store: Path,
    name: str,
    version: int,
    *,
    training: dict[str, Any],
    labels: Sequence[str] | None = None,
    images: Sequence[np.ndarray] | None = None,
    measurement: Measurement | None = None,
    options: GraphOptions = DEFAULT_OPTIONS,
    score_threshold: float | None = None,
) -> Path:
    """Writes the version's folder and returns it. Prints the score threshold, and how it was chosen.

    detector: of this project, or any instance of torchvision's FasterRCNN;
    training: how the detector was made, for the card;
    labels: names of the classes without background; needed for a model of torchvision, which has none;
    images: uint8 [H, W, 3], to verify the graph on; by default generated ones;
    measurement: by default nothing is measured;
    score_threshold: the default of the request parameter of this name. Without it, it is chosen on the data of
    `measurement` (see `evaluation/threshold.py`), or 0.5 without these.
    Raises FileExistsError if the version exists, Disagreement or Misplaced if a graph fails its verification,
    ValueError if the service could not serve the model.
    """
    detector = exportable(detector)
    names = _checked_labels(detector, labels)
    check_place(name, version)
    final = store / name / str(version)
    if final.exists():
        raise FileExistsError(f"{final} already exists; choose another --version")
    if images is None:
        images = [Shapes("test")[index].image for index in range(GENERATED_IMAGES)]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".publishing-") as aside:
        folder = Path(aside) / name / str(version)
        folder.mkdir(parents=True)
        card = {"name": name, "version": version, "labels": names, "training": training}
        card |= _verified_graphs(folder, detector, images, options)
        threshold = without_data(score_threshold)
        card |= threshold.card()
        write_card(folder, card)  # the service's own loader, which the measurement uses, needs a complete card
        if measurement is not None:
            threshold = _measure(folder, card, measurement, score_threshold)
        final.parent.mkdir(exist_ok=True)
        folder.rename(final)
    print(threshold.report())
    return final


def _verified_graphs(
    folder: Path, detector: Exportable, images: Sequence[np.ndarray], options: GraphOptions
) -> dict[str, Any]:
    """Writes the graphs, verifies them, and returns the card's entries on them and on the detector."""
    sizes = canvases(detector.resize, detector.stride)
    graphs = write_graphs(folder, detector, Verifier(detector, sizes, images), options)
    resize: dict[str, Any] = {"min_size": detector.resize.min_size, "max_size": detector.resize.max_size}
    if not detector.antialias:
        resize["antialias"] = False
    return {
        "canvases": [list(size) for size in sizes],
        "resize": resize,
        "white": detector.white,
        "metrics": {},
        "opset": OPSET,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "detector": detector.describe(),
        "tools": {tool: version_of(tool) for tool in TOOLS} | {"onnxruntime": onnxruntime.__version__},
    } | graphs


def _checked_labels(detector: Exportable, labels: Sequence[str] | None) -> list[str]:
    """The names of the detector's classes. Raises ValueError unless there is one for each class, and each is unique."""
    labels = detector.labels if labels is None else labels
    if labels is None or len(labels) != detector.classes:
        given = "none" if labels is None else str(len(labels))
        raise ValueError(f"the detector has {detector.classes} classes without background, labels are for {given}")
    return list(distinct(labels, "labels"))


def check_place(name: str, version: int) -> None:
    """Raises ValueError if the service would not find a version in the store under this name and number."""
    if not re.fullmatch(NAME, name) or version < 0:
        raise ValueError(
            f"the service accepts no model {name!r} of version {version}; a name begins with a letter or digit and "
            "continues with letters, digits, dots, hyphens and underscores, and a version is not negative"
        )


def _measure(folder: Path, card: dict[str, Any], measurement: Measurement, given: float | None) -> ServedThreshold:
    """Adds the metrics and the served threshold to the card, and writes the example if it is wanted.

    Another graph is measured too if its precision differs from that of `model.onnx`.
    """
    predict = onnx_predictor(folder)
    collected = collect(measurement.data, predict, measurement.limit)
    metrics = measure(*collected, measurement.data.labels)
    limits = limits_of(card["detector"])
    if measurement.validation is None:
        validation = Validation(measurement.data, measurement.name)
        threshold = on_validation(validation, predict, given, limits, collected)
    else:
        threshold = on_validation(measurement.validation, predict, given, limits)
    for name, graph in card.get("graphs", {}).items():
        if graph["precision"] != card["precision"]:  # otherwise the answers are the same
            in_precision = collect(measurement.data, onnx_predictor(folder, name), measurement.limit)
            graph["metrics"] = {measurement.name: measure(*in_precision, measurement.data.labels)}
    write_card(folder, card | threshold.card() | {"metrics": {measurement.name: metrics}})
    if measurement.example:
        _draw_example(folder, measurement.data, predict, threshold.value)
    return threshold


def _draw_example(folder: Path, data: Dataset, predict: Predictor, threshold: float) -> None:
    """`example.jpg`, of the first images the wide one with the most objects, and `result.jpg`, its detections."""
    candidates = (data[index] for index in range(min(EXAMPLES, len(data))))
    sample = max(candidates, key=lambda one: (one.image.shape[1] > one.image.shape[0], len(one.labels)))
    Image.fromarray(sample.image).save(folder / "example.jpg", quality=92)
    drawn = draw_prediction(sample.image, predict(sample), data.labels, threshold)
    drawn.save(folder / "result.jpg", quality=92)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """`model.json` of a version's folder."""
    (folder / "model.json").write_text(json.dumps(card, indent=1) + "\n")
