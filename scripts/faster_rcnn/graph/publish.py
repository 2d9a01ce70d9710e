"""A trained detector to `model_store/<name>/<version>/`: exported, verified, measured, moved into place at once."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from faster_rcnn.config import canvases
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.drawing import draw_prediction
from faster_rcnn.evaluation import Predictor, evaluate
from faster_rcnn.graph.export import export_onnx
from faster_rcnn.graph.serving import onnx_predictor
from faster_rcnn.graph.translations import OPSET
from faster_rcnn.graph.verification import verify

SERVED_THRESHOLD = 0.5  # what a client gets who names none: few false boxes
EXAMPLES = 48  # pictures from which one is shown
TOOLS = ("torch", "torchvision", "onnx", "onnxscript", "numpy", "pillow")


def next_version(store: Path, name: str) -> int:
    """One more than the highest version of a model in the store."""
    there = [int(entry.name) for entry in (store / name).glob("*") if entry.name.isdecimal()]
    return max(there, default=0) + 1


def publish(
    detector: FasterRCNN,
    store: Path,
    name: str,
    version: int,
    training: dict[str, Any],
    measured_on: str,
    test: Dataset,
    pictures: Sequence[np.ndarray],
    limit: int | None = None,
    example: bool = True,
) -> Path:
    """Writes the version's folder and returns it.

    training: how the detector was made;  measured_on: the name of `test`, whose first `limit` pictures are measured;
    pictures: what the graph is verified on;  example: whether one picture of `test` is put beside the model.
    Raises FileExistsError if the version is there, Disagreement if the graph breaks a promise.
    """
    final = store / name / str(version)
    if final.exists():
        raise FileExistsError(f"{final} is there already; choose another --version")
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".publishing-") as aside:
        folder = Path(aside) / name / str(version)
        folder.mkdir(parents=True)
        graph = folder / "model.onnx"
        export_onnx(detector, graph)
        sizes = canvases(detector.config.resize, detector.backbone.stride)
        verification = verify(graph, detector, sizes, pictures)
        card: dict[str, Any] = {
            "name": name,
            "version": version,
            "labels": list(detector.config.labels),
            "canvases": [list(size) for size in sizes],
            "resize": {"min_size": detector.config.resize.min_size, "max_size": detector.config.resize.max_size},
            "score_threshold": SERVED_THRESHOLD,
            "opset": OPSET,
            "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
            "bytes": graph.stat().st_size,
            "parameters": sum(parameter.numel() for parameter in detector.parameters()),
            "training": training,
            "detector": detector.config.to_dict(),
            "verification": verification.to_dict(),
            "tools": {tool: version_of(tool) for tool in TOOLS} | {"onnxruntime": onnxruntime.__version__},
        }
        _write(folder, card)  # the service's own loader, which measures, wants it whole
        predict = onnx_predictor(folder)
        card["metrics"] = {measured_on: evaluate(test, predict, limit)}
        _write(folder, card)
        if example:
            _draw_example(folder, test, predict)
        final.parent.mkdir(exist_ok=True)
        folder.rename(final)
    return final


def _draw_example(folder: Path, test: Dataset, predict: Predictor) -> None:
    """`example.jpg`, the fullest wide picture of the first, and `result.jpg`, what the model sees in it."""
    candidates = (test[index] for index in range(min(EXAMPLES, len(test))))
    sample = max(candidates, key=lambda one: (one.image.shape[1] > one.image.shape[0], len(one.labels)))
    Image.fromarray(sample.image).save(folder / "example.jpg", quality=92)
    picture = draw_prediction(sample.image, predict(sample), test.labels, SERVED_THRESHOLD)
    picture.save(folder / "result.jpg", quality=92)


def _write(folder: Path, card: dict[str, Any]) -> None:
    (folder / "model.json").write_text(json.dumps(card, indent=1) + "\n")
