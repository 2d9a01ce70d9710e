"""What a detector must offer to be exported, verified and published."""

from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector


class Exportable(Protocol):
    """A module whose call, on images uint8 [N, H, W, 3] and sizes int64 [N, 2], is what the graph computes.

    stride: the sides of a canvas are multiples of it, in pixels;
    resize: how an image is resized before it is put on a canvas;
    white: the value that means white in an image with 16 bits per channel;
    antialias: whether it is smoothed when it is made smaller;
    classes: their number, without background;
    labels: their names, or None if the detector does not know them;
    score_floor: the score that a detection must pass;
    stable_ranking: whether PyTorch and ONNX Runtime rank its boxes alike, so that in float32 no box may be missing.
    """

    stride: int
    resize: ResizeRule
    antialias: bool
    classes: int
    score_floor: float
    stable_ranking: bool

    @property
    def white(self) -> int: ...

    @property
    def labels(self) -> tuple[str, ...] | None: ...

    @property
    def feature_layers(self) -> list[nn.Module]:
        """The layers that a graph of lower precision has in float16."""

    def __call__(self, images: Tensor, sizes: Tensor) -> DetectorOutput: ...

    def alone_resized(self, image: np.ndarray) -> DetectorOutput:
        """The answer for one image, uint8 [H, W, 3], that has been resized; arrays without the batch dimension.

        Unless `stable_ranking`, it is in float64 after `double()`.
        """

    def for_export(self: "AnyExportable", cpu_only: bool) -> "AnyExportable":
        """The form to export; cpu_only: for a graph that only the CPU computes. Raises ValueError if there is none."""

    def describe(self) -> dict[str, Any]:
        """The settings, besides the weights, that determine its answers, for `model.json`."""

    # of every nn.Module
    def eval(self: "AnyExportable") -> "AnyExportable": ...
    def cpu(self: "AnyExportable") -> "AnyExportable": ...
    def double(self: "AnyExportable") -> "AnyExportable": ...
    def to(self: "AnyExportable", device: Any, /) -> "AnyExportable": ...
    def parameters(self) -> Any: ...


AnyExportable = TypeVar("AnyExportable", bound=Exportable)


def exportable(detector: Exportable | TorchvisionFasterRCNN) -> Exportable:
    """The detector in the form that is exported: a torchvision model is wrapped.

    Raises Unsupported for a torchvision model whose answer for an image would depend on the rest of its batch.
    """
    return TorchvisionDetector(detector) if isinstance(detector, TorchvisionFasterRCNN) else detector
