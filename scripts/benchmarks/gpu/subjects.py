"""The torchvision model that is measured, with random weights: built, calibrated and exported into a folder.

Every weight of a layer is +s or -s. Its variance is then that of the usual initial weights, and the file compresses to
a thirtieth, so that it can travel. Statistics of the normalisations are measured, and the four layers that predict are
scaled so that scores and boxes differ: otherwise nothing would be found, and nothing could be compared.
"""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.gpu.setup import TINY
from benchmarks.preparation import take_statistics
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector

if TYPE_CHECKING:
    from faster_rcnn.graph.version_graphs import OtherGraph

SEED = 0
WEIGHTS = "weights.npz"
# The standard deviation of each predicting layer's outputs.
SPREAD = {"rpn.head.cls_logits": 3.0, "rpn.head.bbox_pred": 0.3}
HEAD_SPREAD = {"roi_heads.box_predictor.cls_score": 3.0, "roi_heads.box_predictor.bbox_pred": 1.0}


def prepare(models: Path, builder: str) -> Path:
    """Exports the model with its weights into `models`, unless it is there. Returns the version's folder."""
    # A machine that only runs the checks need not have what exporting needs.
    from faster_rcnn.detector.config import canvases
    from faster_rcnn.graph.export import export_onnx
    from faster_rcnn.graph.publish import write_card
    from faster_rcnn.graph.translations import OPSET
    from faster_rcnn.graph.version_graphs import GraphOptions, others_for

    folder = models / builder / "1"
    if (folder / "model.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model = calibrated(unweighted(builder))
    np.savez(folder / WEIGHTS, **{name: value.numpy() for name, value in model.state_dict().items()})
    detector = TorchvisionDetector(model)
    graph = folder / "model.onnx"
    export_onnx(detector, graph)
    # The rehearsal runs on the CPU, which takes model.onnx.
    others = [] if builder == TINY else others_for(GraphOptions(cuda_fp16=True))
    resize = {"min_size": detector.resize.min_size, "max_size": detector.resize.max_size, "antialias": False}
    card = {
        "name": builder,
        "version": 1,
        "labels": [f"class {number}" for number in range(1, detector.classes + 1)],
        "canvases": [list(size) for size in canvases(detector.resize, detector.stride)],
        "resize": resize,
        "score_threshold": 0.5,
        "opset": OPSET,
        "precision": "fp32",
        "provider": "any",
        "graphs": {one.name: _write(folder, detector, one) for one in others},
        **_described(graph),
    }
    write_card(folder, card)
    return folder


def _write(folder: Path, detector: TorchvisionDetector, other: "OtherGraph") -> dict[str, Any]:
    """Exports a graph beside `model.onnx`, without its verification, which is C4. Returns its entry in the card."""
    from faster_rcnn.graph.export import export_onnx
    from faster_rcnn.graph.shared_weights import share_weights

    path = folder / other.file
    export_onnx(detector, path, other.precision, form=other.form)
    share_weights(path, folder / "model.onnx")
    return {"file": other.file, "precision": other.precision, **_described(path)}


def _described(graph: Path) -> dict[str, Any]:
    data = graph.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def load(folder: Path) -> FasterRCNN:
    """The model in PyTorch, with the weights that are beside its graph."""
    model = unweighted(folder.parent.name)
    with np.load(folder / WEIGHTS) as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return model


def unweighted(builder: str) -> FasterRCNN:
    """The model in eval mode, with weights of no meaning."""
    if builder == TINY:
        return _tiny().eval()
    model: FasterRCNN = getattr(detection, builder)(weights=None, weights_backbone=None)
    return model.eval()


def _tiny() -> FasterRCNN:
    """A model of the same class that exports in seconds: two convolutions, one map, three classes."""
    backbone = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=4, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
    )
    return FasterRCNN(
        _with_channels(backbone, 16),
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_head=TwoMLPHead(16 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=20,
    )


def _with_channels(backbone: nn.Module, channels: int) -> nn.Module:
    """`backbone` with the attribute that torchvision reads."""
    backbone.out_channels = channels  # type: ignore[assignment]
    return backbone


@torch.no_grad()
def calibrated(model: FasterRCNN) -> FasterRCNN:
    """`model` with two-valued random weights under which scores and boxes are spread out."""
    draw = torch.Generator().manual_seed(SEED)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = math.sqrt(2 / layer.weight[0].numel())
            coins = torch.randint(0, 2, layer.weight.shape, generator=draw)
            layer.weight.copy_((2 * coins - 1) * size)
            if layer.bias is not None:
                layer.bias.zero_()
    image = torch.rand(3, model.transform.min_size[0], model.transform.max_size, generator=draw)
    take_statistics(model, [image])
    for spread in (SPREAD, HEAD_SPREAD):  # the head's regions depend on what the RPN predicts
        _spread(model, image, spread)
    return model


def _spread(model: FasterRCNN, image: Tensor, wanted: dict[str, float]) -> None:
    """Scales the layers named in `wanted` so that their outputs have these standard deviations."""
    seen: dict[str, list[Tensor]] = {name: [] for name in wanted}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, kept=kept: kept.append(out.flatten()))
        for name, kept in seen.items()
    ]
    model([image])
    for hook in hooks:
        hook.remove()
    for name, outputs in seen.items():
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        layer.weight *= wanted[name] / float(torch.cat(outputs).std())
