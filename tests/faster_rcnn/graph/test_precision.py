"""float16 features: which layers are converted, and that normalisations keep their results."""

import torch
from torch import nn

from faster_rcnn.graph.precision import with_precision
from tests.faster_rcnn.lively import lively


def test_fp32_is_the_detector_itself() -> None:
    detector = lively("compact")
    assert with_precision(detector, "fp32") is detector


def test_fp16_converts_a_copy_but_not_the_layers_of_scores_and_deltas() -> None:
    detector = lively("compact")
    half = with_precision(detector, "fp16")
    types = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert {types[name] for name in types if name.startswith("backbone.")} == {torch.float16}
    assert types["head.cls_score.weight"] == types["head.bbox_pred.weight"] == torch.float32
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}  # the original is unchanged


def test_a_normalisation_with_a_variance_beyond_float16_keeps_its_result() -> None:
    """A variance of 1e6 is above 65504, the largest float16."""
    detector = lively("compact")
    first = next(module for module in detector.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    assert first.running_mean is not None
    assert first.running_var is not None
    first.running_var.fill_(1e6)
    first.running_mean.fill_(3.0)
    half = with_precision(detector, "fp16")
    folded = next(module for module in half.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    maps = torch.full((1, first.num_features, 2, 2), 1500.0)
    torch.testing.assert_close(folded(maps.half()).float(), first(maps), atol=2e-3, rtol=2e-3)
