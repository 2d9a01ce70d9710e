"""A published model as a predictor, through the online half's own code: its decoding, its resizing, its engine."""

import io
from pathlib import Path

from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation import Predictor
from service import images, store
from service.engine import Engine, pick_provider, usable_cores


def onnx_predictor(folder: Path) -> Predictor:
    """What the service would answer, at the graph's own score floor.

    folder: `<store>/<name>/<version>`.  Raises ValueError if the service would refuse it.
    """
    try:
        engine = Engine(store.load(folder), pick_provider(), usable_cores())
    except store.Refused as refusal:
        raise ValueError(f"{folder}: {refusal}") from refusal

    def predict(sample: Sample) -> Prediction:
        upload = io.BytesIO()
        Image.fromarray(sample.image).save(upload, "PNG", compress_level=1)
        result = engine.run([images.decode(upload.getvalue(), engine.card.geometry)])[0]
        return Prediction(result.boxes, result.scores, result.labels, result.proposals)

    return predict
