"""A detector to `model.onnx`: one file, every dimension of the batch symbolic."""

import copy
import logging
import sys
import warnings
from pathlib import Path
from typing import Literal

import onnx
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from faster_rcnn.detector.detector import DetectorOutput, FasterRCNN
from faster_rcnn.graph.precision import Precision, with_precision
from faster_rcnn.graph.translations import OPSET, TRANSLATIONS
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector

INPUTS = ("images", "sizes")
OUTPUTS = DetectorOutput._fields

Provider = Literal["any", "cpu"]
Exportable = FasterRCNN | TorchvisionDetector


def exportable(detector: Exportable | TorchvisionFasterRCNN) -> Exportable:
    """Gives a torchvision model the form that is exported and leaves a detector of this project as it is."""
    return TorchvisionDetector(detector) if isinstance(detector, TorchvisionFasterRCNN) else detector


def export_onnx(
    detector: Exportable | TorchvisionFasterRCNN,
    path: Path,
    precision: Precision = "fp32",
    provider: Provider = "any",
) -> None:
    """Writes the graph of a detector with symbolic N, H and W; the detector is left on the CPU, in eval mode.

    detector: of this project, or any instance of torchvision's FasterRCNN, whatever its backbone, anchors, thresholds
    and sizes;  precision: of the features, see `precision.py`;  provider: what the graph is for. RoI max pooling alone
    asks for the difference: the operator of ONNX has no CUDA kernel, and the form that has bounds the maps' size.
    Raises ValueError if they are too large for it, and Unsupported for a model of torchvision's that cannot be told
    for an image alone.
    Tracing runs a real batch of two images of different sizes: a batch of one would be taken for a constant.
    """
    detector = with_precision(exportable(detector).eval().cpu(), precision)
    if isinstance(detector, FasterRCNN):
        detector = copy.copy(detector)
        detector.portable_max_pooling = provider == "any"
        if detector.portable_max_pooling:
            detector.check_map_size()
    stride = detector.stride
    images = torch.randint(0, 256, (2, 10 * stride, 14 * stride, 3), dtype=torch.uint8)
    sizes = torch.tensor([[10 * stride, 14 * stride], [10 * stride - 9, 12 * stride - 3]])
    batch = torch.export.Dim("N", min=1, max=1024)
    height = stride * torch.export.Dim("rows", min=2, max=1024)
    width = stride * torch.export.Dim("columns", min=2, max=1024)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            detector,
            (images, sizes),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: height, 2: width}, {0: batch}),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    # also the weights that are only reordered, which the exporter's own pass takes for too large
    fold_constants(program.model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    remove_unused_nodes(program.model)
    program.save(str(path), external_data=False)
    _name_dimensions(path)


def _name_dimensions(path: Path) -> None:
    """Calls the canvas H × W. The exporter writes them as products of the stride, which is no name to feed."""
    model = onnx.load(path)
    shape = model.graph.input[0].type.tensor_type.shape
    for dimension, name in zip(shape.dim, ("N", "H", "W"), strict=False):
        dimension.dim_param = name
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
