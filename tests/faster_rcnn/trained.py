"""The PyTorch detector of a model that comes with the project, from the weights in its published graph."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN
from service.engine.providers import CPU, open_session, session_options

SHAPES = Path(__file__).resolve().parents[2] / "model_store" / "shapes" / "1"


@torch.no_grad()
def trained_on_shapes() -> FasterRCNN:
    """The detector of shapes/1.

    The export folds normalisations into the convolutions before them, and stores fc6's weights with the channels last.
    """
    graph = onnx.load(SHAPES / "model.onnx").graph
    card = json.loads((SHAPES / "model.json").read_text())
    detector = FasterRCNN(DetectorConfig.from_dict(card["detector"])).eval()
    weights = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}
    state = detector.state_dict()
    state |= {name: weights[name] for name in state.keys() & weights.keys()}
    for place, norm in enumerate(detector.backbone.normalisations):
        folded = next(one for one in graph.node if f"backbone.convolutions.{place}.weight" in one.input)
        if len(folded.input) == 3:
            assert isinstance(norm, nn.BatchNorm2d)
            prefix = f"backbone.normalisations.{place}."
            one = torch.ones(norm.num_features)
            state[prefix + "weight"], state[prefix + "bias"] = one, weights[folded.input[2]]
            state[prefix + "running_mean"], state[prefix + "running_var"] = 0 * one, (1 - norm.eps) * one
    name = next(one for one in graph.node if one.op_type == "Gemm").input[1]  # the first Gemm is fc6
    S = detector.config.roi_size
    state["head.fc6.weight"] = weights[name].unflatten(1, (S, S, -1)).permute(0, 3, 1, 2).flatten(1)
    detector.load_state_dict(state)
    return detector


def answers(graph: Path, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """A graph's outputs for a batch, on the CPU provider."""
    found: list[np.ndarray] = open_session(graph.read_bytes(), CPU, session_options(1)).run(
        None, {"images": images, "sizes": sizes}
    )
    return found
