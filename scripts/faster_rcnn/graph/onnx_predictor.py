"""Predicts with a published model through the service's own code: its decoding, its resizing and its engine."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation import Predictor
from service.engine.cores import usable_cores
from service.engine.engine import Engine
from service.engine.model import ModelRefusedError, load_model
from service.engine.providers import pick_provider
from service.images.decode import decode
from service.images.fit import Canvas, Geometry


def onnx_predictor(folder: Path) -> Predictor:
    """A function that returns what the service would answer for an image, down to the graph's own score floor.

    folder: `<store>/<name>/<version>`.  Raises ValueError if the service would refuse the version.
    """
    try:
        engine = Engine(load_model(folder), pick_provider(), usable_cores())
    except ModelRefusedError as refusal:
        raise ValueError(f"{folder}: {refusal}") from refusal

    def predict(sample: Sample) -> Prediction:
        result = engine.run([decoded(sample.image, engine.card.geometry)])[0]
        return Prediction(result.boxes, result.scores, result.labels, result.proposals, float(result.left_out))

    return predict


def decoded(image: np.ndarray, geometry: Geometry) -> Canvas:
    """An image, uint8 [H, W, 3], as the service decodes and resizes it after a lossless upload."""
    upload = io.BytesIO()
    Image.fromarray(image).save(upload, "PNG", compress_level=1)
    return decode(upload.getvalue(), geometry)
