"""Faster R-CNN in PyTorch: train a detector, evaluate it and publish it as an ONNX graph.

The command `faster-rcnn` does all of this. From Python, a trained detector is used like this:

    detector = load_detector(Path("runs/mine"), "best")
    resized, scale_x, scale_y = resize_image(rgb, detector.resize)  # rgb: uint8 [H, W, 3], upright
    output = detector.alone(resized)

`alone` does not resize: the boxes in `output` are in pixels of `resized`. Divide them by `scale_x` and `scale_y`
to convert them to pixels of `rgb`.

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

    __version__: str

__all__ = [
    "Dataset",
    "DetectorConfig",
    "DetectorOutput",
    "FasterRCNN",
    "Prediction",
    "ResizeRule",
    "Sample",
    "__version__",
    "default_config",
    "load_detector",
    "open_dataset",
    "resize_image",
]

_MODULES = {
    "Dataset": "faster_rcnn.data.dataset",
    "DetectorConfig": "faster_rcnn.detector.config",
    "DetectorOutput": "faster_rcnn.detector.detector",
    "FasterRCNN": "faster_rcnn.detector.detector",
    "Prediction": "faster_rcnn.data.dataset",
    "ResizeRule": "faster_rcnn.detector.resize",
    "Sample": "faster_rcnn.data.dataset",
    "default_config": "faster_rcnn.detector.config",
    "load_detector": "faster_rcnn.detector.checkpoint",
    "open_dataset": "faster_rcnn.data.sources",
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
