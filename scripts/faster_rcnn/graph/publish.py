"""A detector to `model_store/<name>/<version>/`: exported, verified, measured, moved into place at once."""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
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
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.evaluation import Predictor, evaluate
from faster_rcnn.evaluation.drawing import draw_prediction
from faster_rcnn.graph.export import Exportable, Provider, export_onnx, exportable
from faster_rcnn.graph.onnx_predictor import onnx_predictor
from faster_rcnn.graph.precision import Precision
from faster_rcnn.graph.translations import OPSET
from faster_rcnn.graph.verification import verify
from faster_rcnn.torchvision_adapter.builders import describe
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from service.engine.model import NAME

SERVED_THRESHOLD = 0.5  # what a client gets who names none: few false boxes
EXAMPLES = 48  # images from which one is shown
DRAWN_IMAGES = 12  # verified on where no data is given
TOOLS = ("torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow")


def next_version(store: Path, name: str) -> int:
    """One more than the highest version of a model in the store."""
    there = [int(entry.name) for entry in (store / name).glob("*") if entry.name.isdecimal()]
    return max(there, default=0) + 1


def publish(
    detector: Exportable | TorchvisionFasterRCNN,
    store: Path,
    name: str,
    version: int,
    training: dict[str, Any],
    measured_on: str = "",
    test: Dataset | None = None,
    images: Sequence[np.ndarray] | None = None,
    limit: int | None = None,
    example: bool = True,
    labels: Sequence[str] | None = None,
    precision: Precision = "fp32",
    provider: Provider = "any",
) -> Path:
    """Writes the version's folder and returns it.

    detector: of this project, or any instance of torchvision's FasterRCNN;
    training: how the detector was made;  measured_on: the name of `test`, whose first `limit` images are measured;
    images: what the graph is verified on, by default images of the generator;  example: whether one image of
    `test` is put beside the model;  labels: of the classes without background, which a model of torchvision does not
    know;  precision: of the graph, "fp32" or "fp16";  provider: what it is for, "any" or "cpu".
    Raises FileExistsError if the version is there, Disagreement if the graph breaks a promise, ValueError if the
    service could not serve it.
    """
    detector = exportable(detector)
    names = _check_labels(detector, labels)
    _check_resize(detector)
    _check_place(name, version)
    final = store / name / str(version)
    if final.exists():
        raise FileExistsError(f"{final} is there already; choose another --version")
    if images is None:
        images = [Shapes("test")[index].image for index in range(DRAWN_IMAGES)]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".publishing-") as aside:
        folder = Path(aside) / name / str(version)
        folder.mkdir(parents=True)
        graph = folder / "model.onnx"
        export_onnx(detector, graph, precision, provider)
        sizes = canvases(detector.resize, detector.stride)
        verification = verify(graph, detector, sizes, images, precision, provider)
        card = {"name": name, "version": version, "labels": names, "training": training}
        card |= _describe(detector, graph) | {"precision": precision, "provider": provider}
        card["verification"] = verification.to_dict()
        write_card(folder, card)  # the service's own loader, which measures, wants it whole
        if test is not None:
            predict = onnx_predictor(folder)
            write_card(folder, card | {"metrics": {measured_on: evaluate(test, predict, limit)}})
            if example:
                _draw_example(folder, test, predict)
        final.parent.mkdir(exist_ok=True)
        folder.rename(final)
    return final


def _describe(detector: Exportable, graph: Path) -> dict[str, Any]:
    """What the card says of a detector and its written graph."""
    resize: dict[str, Any] = {"min_size": detector.resize.min_size, "max_size": detector.resize.max_size}
    if isinstance(detector, TorchvisionDetector):
        resize["antialias"] = False  # what torchvision's detectors learnt on
        made_of = describe(detector.model)
    else:
        made_of = detector.config.to_dict()
    return {
        "canvases": [list(size) for size in canvases(detector.resize, detector.stride)],
        "resize": resize,
        "score_threshold": SERVED_THRESHOLD,
        "metrics": {},
        "opset": OPSET,
        "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "bytes": graph.stat().st_size,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "detector": made_of,
        "tools": {tool: version_of(tool) for tool in TOOLS} | {"onnxruntime": onnxruntime.__version__},
    }


def _check_labels(detector: Exportable, labels: Sequence[str] | None) -> list[str]:
    """The names of the detector's classes, as many as there are and each once, or ValueError."""
    if isinstance(detector, FasterRCNN) and labels is None:
        return list(detector.config.labels)
    if labels is None or len(labels) != detector.classes:
        given = "none" if labels is None else str(len(labels))
        raise ValueError(f"the detector has {detector.classes} classes without background, labels are for {given}")
    return list(distinct(labels, "labels"))


def _check_place(name: str, version: int) -> None:
    if not re.fullmatch(NAME, name) or version < 0:
        raise ValueError(
            f"the service takes no model {name!r} of version {version}; a name begins with a letter or digit and goes "
            "on with these, dots, hyphens and underscores, and a version is not negative"
        )


def _check_resize(detector: Exportable) -> None:
    if isinstance(detector, TorchvisionDetector) and (fixed := detector.model.transform.fixed_size) is not None:
        raise ValueError(
            f"the model's transform makes every image {fixed[0]}×{fixed[1]} whatever its shape, "
            "and the service keeps shapes; build the model with min_size and max_size instead of fixed_size"
        )


def _draw_example(folder: Path, test: Dataset, predict: Predictor) -> None:
    """`example.jpg`, the fullest wide image of the first, and `result.jpg`, what the model sees in it."""
    candidates = (test[index] for index in range(min(EXAMPLES, len(test))))
    sample = max(candidates, key=lambda one: (one.image.shape[1] > one.image.shape[0], len(one.labels)))
    Image.fromarray(sample.image).save(folder / "example.jpg", quality=92)
    picture = draw_prediction(sample.image, predict(sample), test.labels, SERVED_THRESHOLD)
    picture.save(folder / "result.jpg", quality=92)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """`model.json` of a version's folder."""
    (folder / "model.json").write_text(json.dumps(card, indent=1) + "\n")
