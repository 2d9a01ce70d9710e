"""Exports a detector to `model.onnx`: one file, with a symbolic batch size, height and width."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import nn

from faster_rcnn.detector.detector import DetectorOutput
from faster_rcnn.detector.graph_form import Form, exporting_as
from faster_rcnn.graph.cuda_suppression import expand_calls
from faster_rcnn.graph.exportable import Exportable
from faster_rcnn.graph.precision import Precision, with_precision
from faster_rcnn.graph.translations import OPSET, TRANSLATIONS

INPUTS = ("images", "sizes")
OUTPUTS = DetectorOutput._fields

Provider = Literal["any", "cpu"]


def export_onnx(
    detector: Exportable,
    path: Path,
    precision: Precision = "fp32",
    provider: Provider = "any",
    form: Form = "portable",
) -> None:
    """Writes the graph of a detector with symbolic N, H and W; the detector is left on the CPU, in eval mode.

    precision: of the features, see `precision.py`;
    provider: which of ONNX Runtime's providers must compute all of the graph. It matters only for RoI max pooling:
    ONNX's own operator has no CUDA kernel, and the form that every provider computes limits the size of the maps.
    form: of the graph, see `detector/graph_form.py`; the answers are the same.
    Raises ValueError if the maps are too large for the portable pooling, or if a graph in the form for CUDA is wanted
    for the CPU alone.
    The exporter traces a batch of two images of different sizes. It would treat a batch size of one as a constant.
    """
    if form == "cuda" and provider == "cpu":
        raise ValueError("the form for CUDA is of no use on the CPU alone; give provider 'any' or form 'portable'")
    detector = with_precision(detector.eval().cpu(), precision).for_export(cpu_only=provider == "cpu")
    stride = detector.stride
    images = torch.randint(0, 256, (2, 10 * stride, 14 * stride, 3), dtype=torch.uint8)
    sizes = torch.tensor([[10 * stride, 14 * stride], [10 * stride - 9, 12 * stride - 3]])
    batch = torch.export.Dim("N", min=1, max=1024)
    height = stride * torch.export.Dim("rows", min=2, max=1024)
    width = stride * torch.export.Dim("columns", min=2, max=1024)
    with warnings.catch_warnings(), torch.no_grad(), exporting_as(form):
        warnings.simplefilter("ignore")  # the exporter itself uses deprecated functions
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            cast(nn.Module, detector),
            (images, sizes),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: height, 2: width}, {0: batch}),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS[form],
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    if form == "cuda":
        expand_calls(program.model)
    # also folds transposed weights, which are above the exporter's size limit
    fold_constants(
        program.model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize, should_fold=_worth_storing
    )
    remove_unused_nodes(program.model)
    _forget_origin(program.model)
    program.save(str(path), external_data=False)
    _name_dimensions(path)


def _worth_storing(node: Any) -> bool | None:
    """False for a list of whole numbers, which a session makes itself; None leaves the decision to the folding."""
    return False if node.op_type == "Range" else None


def _forget_origin(model: Any) -> None:
    """Removes what the exporter notes on every node: the source lines that it stems from, and the paths of their files.

    This would publish the names of folders on this machine, and it makes up most of a small graph.
    """
    for part in (model, model.graph, *model.graph.inputs, *model.graph.initializers.values()):
        part.metadata_props.clear()
    for node in model.graph.all_nodes():  # also those in the bodies of loops
        node.doc_string = None
        for part in (node, *node.outputs):
            part.metadata_props.clear()


def _name_dimensions(path: Path) -> None:
    """Names the canvas H × W; the exporter names both sides by formulas such as `32*rows`."""
    model = onnx.load(path)
    shape = model.graph.input[0].type.tensor_type.shape
    for dimension, name in zip(shape.dim, ("N", "H", "W"), strict=False):
        dimension.dim_param = name
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
