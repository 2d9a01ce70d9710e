"""Untrained detectors that still find objects, so that tests can compare outputs."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.resize import ResizeRule, resize_image


def lively(backbone: str, **changes: Any) -> FasterRCNN:
    """An untrained detector whose scores and boxes are spread out, so that differences are visible."""
    torch.manual_seed(1)
    detector = FasterRCNN(replace(default_config(backbone, Shapes.labels), **changes)).eval()
    with torch.no_grad():
        for module in detector.backbone.modules():
            # With untrained normalisations the features of a MobileNet vanish and those of a ResNet explode.
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.2)
            elif isinstance(module, InvertedResidual):
                for normalisation in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
                    normalisation.weight.fill_(2.0)
                    normalisation.bias.normal_(std=0.1)
        for layer, factor in (
            (detector.rpn.cls_score, 100.0),
            (detector.rpn.bbox_pred, 5.0),
            (detector.head.cls_score, 60.0),
            (detector.head.bbox_pred, 300.0),
        ):
            layer.weight *= factor
    return detector


@torch.no_grad()
def lively_torchvision(model: TorchvisionFasterRCNN, seed: int = 1) -> TorchvisionFasterRCNN:
    """Sets an untrained model's normalisations from some images, and spreads out its scores and boxes."""
    torch.manual_seed(seed)
    images = [torch.from_numpy(resize_image(Shapes("test")[n].image, ResizeRule(128, 192))[0].copy()) for n in range(4)]
    batch = model.transform.batch_images([model.transform.normalize(one.permute(2, 0, 1) / 255) for one in images])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # None averages over all batches
        norm.reset_running_stats()
    features = model.backbone.train()(batch)
    model.eval()
    features = {"0": features} if isinstance(features, torch.Tensor) else features
    head = model.rpn.head
    for output, (layer, most) in enumerate(((head.cls_logits, 8.0), (head.bbox_pred, 1.0))):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias, std=most / 8)
        layer.weight *= most / torch.cat([one.flatten() for one in head(list(features.values()))[output]]).abs().max()
    channels = next(iter(features.values())).shape[1]
    regions = torch.randn(32, channels, *model.roi_heads.box_roi_pool.output_size).relu() * features["0"].std()
    hidden = model.roi_heads.box_head(regions)
    predictor = model.roi_heads.box_predictor
    for layer, spread in ((predictor.cls_score, 3.0), (predictor.bbox_pred, 1.0)):
        nn.init.normal_(layer.weight)
        layer.weight *= spread / layer(hidden).std()
    return model
