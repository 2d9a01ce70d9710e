"""Publishes an int8 copy of a published model for the CPU: a new version, measured against its float32 source."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.detector.limits import limits_of
from faster_rcnn.evaluation import collect, evaluate, measure
from faster_rcnn.evaluation.threshold import GIVEN
from faster_rcnn.graph.onnx_predictor import canvas_of, onnx_predictor
from faster_rcnn.graph.publish import write_card
from faster_rcnn.graph.quantisation import quantise
from faster_rcnn.graph.served_threshold import Validation, on_validation
from service.engine.model import load_model

CALIBRATION_IMAGES = 48
LARGEST_LOSS = 0.01  # of AP@[.5:.95]


class TooCoarse(ValueError):  # noqa: N818  the word for it
    """The int8 model loses more AP than LARGEST_LOSS; the message says how much."""


def publish_int8(
    source: Path,
    version: int,
    calibration: Dataset,
    test: Dataset,
    measured_on: str,
    limit: int | None = None,
    validation: Validation | None = None,
    score_threshold: float | None = None,
) -> Path:
    """Writes version `version` of the model beside `source` and returns its folder. Prints the score threshold.

    Scores in int8 differ from those in float32, so the served threshold is chosen again.

    source: `<store>/<name>/<version>`, in float32;
    calibration: the ranges of the features are measured on its first CALIBRATION_IMAGES images;
    measured_on: the name of `test`, on whose first `limit` images both versions are measured;
    validation: the data on which the threshold is chosen, by default the same;
    score_threshold: a threshold to use instead. One that was given for the source is kept, too.
    Raises FileExistsError if the version exists, TooCoarse if AP falls by more than a point, ValueError if the service
    would refuse either version.
    """
    final = source.parent / str(version)
    if final.exists():
        raise FileExistsError(f"{final} already exists; choose another --version")
    before = evaluate(test, onnx_predictor(source), limit)
    model = load_model(source)
    with tempfile.TemporaryDirectory(dir=source.parent.parent, prefix=".publishing-") as aside:
        folder = Path(aside) / source.parent.name / str(version)
        folder.mkdir(parents=True)
        samples = (calibration[index] for index in range(min(CALIBRATION_IMAGES, len(calibration))))
        canvases = (canvas_of(sample, model.card.geometry) for sample in samples)
        quantise(source / "model.onnx", folder / "model.onnx", canvases)
        card = json.loads((source / "model.json").read_text()) | {
            "version": version,
            "precision": "int8",
            "provider": "cpu",
            "quantised_from": model.card.version,
            "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
            "bytes": (folder / "model.onnx").stat().st_size,
        }
        for member in ("verification", "verification_on_cuda", "graphs"):  # they describe graphs in float32
            card.pop(member, None)
        write_card(folder, card)
        predict = onnx_predictor(folder)
        collected = collect(test, predict, limit)
        after = measure(*collected, test.labels)
        if after["AP"] < before["AP"] - LARGEST_LOSS:
            raise TooCoarse(
                f"AP on {measured_on} falls from {before['AP']} to {after['AP']} in int8; serve the float32 version"
            )
        given = _given(card) if score_threshold is None else score_threshold
        limits = limits_of(card.get("detector", {}))
        if validation is None:
            threshold = on_validation(Validation(test, measured_on), predict, given, limits, collected)
        else:
            threshold = on_validation(validation, predict, given, limits)
        metrics = {measured_on: after, f"{measured_on}, float32": before}
        write_card(folder, card | threshold.card() | {"metrics": metrics})
        folder.rename(final)
    print(threshold.report())
    return final


def _given(card: dict[str, Any]) -> float | None:
    """The threshold of a card if a person named it."""
    named = card.get("score_threshold_choice", {}).get("rule") == GIVEN
    return float(card["score_threshold"]) if named else None
