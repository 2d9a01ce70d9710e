"""The PyTorch detectors of the models that come with the project, from the weights in their published graphs."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.detector import FasterRCNN

STORE = Path(__file__).resolve().parents[2] / "model_store"


@torch.no_grad()
def trained(name: str) -> FasterRCNN:
    """The detector of version 1 of a model with the compact backbone.

    The export folds normalisations into the convolutions before them, and stores the head's weights transposed, fc6's
    with the channels last.
    """
    graph = onnx.load(STORE / name / "1" / "model.onnx").graph
    card = json.loads((STORE / name / "1" / "model.json").read_text())
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
    layers = [one for one in graph.node if one.op_type in ("Gemm", "MatMul") and one.input[1] in weights][-4:]
    for layer, node in zip(("fc6", "fc7", "cls_score", "bbox_pred"), layers, strict=True):
        weight, shape = weights[node.input[1]], state[f"head.{layer}.weight"].shape
        turned = not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        weight = weight.T if turned else weight
        if layer == "fc6":
            S = detector.config.roi_size
            weight = weight.unflatten(1, (S, S, -1)).permute(0, 3, 1, 2).flatten(1)
        assert weight.shape == shape
        state[f"head.{layer}.weight"] = weight.contiguous()
    detector.load_state_dict(state)
    return detector


def answers(graph: Path, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """A graph's outputs for a batch, on the CPU provider."""
    from service.engine.providers import CPU, open_session, session_options

    found: list[np.ndarray] = open_session(graph.read_bytes(), CPU, session_options(1)).run(
        None, {"images": images, "sizes": sizes}
    )
    return found
