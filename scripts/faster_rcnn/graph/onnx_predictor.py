"""Predicts with a published model through the service's own code: its decoding, its resizing and its engine."""

from pathlib import Path

from PIL import Image

from faster_rcnn.data.dataset import Prediction, Sample
from faster_rcnn.evaluation import Predictor
from faster_rcnn.image_input import lossless
from service.engine.cores import usable_cores
from service.engine.engine import Engine
from service.engine.model import ModelRefusedError, load_model
from service.engine.providers import pick_provider
from service.images.decode import decode
from service.images.fit import Canvas, Geometry


def onnx_predictor(folder: Path, graph: str | None = None) -> Predictor:
    """A function that returns what the service would answer for an image, down to the graph's own score floor.

    folder: `<store>/<name>/<version>`;  graph: the name in the card of the graph to run, whatever the provider; by
    default the one that the service would run.  Raises ValueError if the service would refuse the version.
    """
    engine = open_engine(folder, graph)

    def predict(sample: Sample) -> Prediction:
        result = engine.run([canvas_of(sample, engine.geometry)])[0]
        return Prediction(result.boxes, result.scores, result.labels, result.proposals, float(result.left_out))

    return predict


def open_engine(folder: Path, graph: str | None = None) -> Engine:
    """The service's engine for a published version. The arguments and errors are those of `onnx_predictor`."""
    try:
        model = load_model(folder)
        return Engine(model if graph is None else model.with_only(graph), pick_provider(), usable_cores())
    except ModelRefusedError as refusal:
        raise ValueError(f"{folder}: {refusal}") from refusal


def canvas_of(sample: Sample, geometry: Geometry) -> Canvas:
    """A sample's image as the service decodes and resizes its file, or a lossless upload if the sample has no file."""
    return decode(lossless(Image.fromarray(sample.image)) if sample.file is None else sample.file, geometry)
