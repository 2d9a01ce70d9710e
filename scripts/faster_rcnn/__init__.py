"""Faster R-CNN in PyTorch: train a detector, evaluate it and publish it as an ONNX graph.

The command `faster-rcnn` does all of this. From Python, a model detects objects like this:

    model = open_model("runs/mine")           # or a checkpoint, model_store/shapes/1, or a detector in PyTorch
    found = model.detect("photo.jpg")         # or bytes, a Pillow image, an array [H, W, 3] of uint8 in RGB
    for box, score, label in zip(found.boxes, found.scores, found.labels):
        print(label, score, box)              # x1, y1, x2, y2 in pixels of the upright image

`detect` returns what the service answers: it decodes and resizes the image as the service does. `detect_batch` takes a
list. `load_detector` loads the detector itself, a `torch.nn.Module`, for other purposes; its `forward` needs images
that have been resized and put on a canvas.

The names below are imported when they are first used (PEP 562), so `import faster_rcnn` does not load torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faster_rcnn.data.dataset import Dataset, Prediction, Sample
    from faster_rcnn.data.sources import open_dataset
    from faster_rcnn.detector.checkpoint import load_detector
    from faster_rcnn.detector.config import DetectorConfig, default_config
    from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN
    from faster_rcnn.detector.resize import ResizeRule, resize_image
    from faster_rcnn.inference import Detections, Model, open_model

    __version__: str

__all__ = [
    "Dataset",
    "Detections",
    "DetectorConfig",
    "DetectorOutput",
    "FasterRCNN",
    "Model",
    "Prediction",
    "ResizeRule",
    "Sample",
    "__version__",
    "default_config",
    "load_detector",
    "open_dataset",
    "open_model",
    "resize_image",
]

_MODULES = {
    "Dataset": "faster_rcnn.data.dataset",
    "Detections": "faster_rcnn.inference",
    "DetectorConfig": "faster_rcnn.detector.config",
    "DetectorOutput": "faster_rcnn.detector.detector",
    "FasterRCNN": "faster_rcnn.detector.detector",
    "Model": "faster_rcnn.inference",
    "Prediction": "faster_rcnn.data.dataset",
    "ResizeRule": "faster_rcnn.detector.resize",
    "Sample": "faster_rcnn.data.dataset",
    "default_config": "faster_rcnn.detector.config",
    "load_detector": "faster_rcnn.detector.checkpoint",
    "open_dataset": "faster_rcnn.data.sources",
    "open_model": "faster_rcnn.inference",
    "resize_image": "faster_rcnn.detector.resize",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("faster-rcnn-service")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
