"""Backbones: an image to one feature map.

N  images;  H, W  canvas;  h, w = H / stride, W / stride.
A backbone takes normalised images [N, 3, H, W] that are zero outside `sizes`, and gives features [N, C, h, w] that are
zero there too and depend on nothing outside (see `padding.py`). H and W are multiples of its stride.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from faster_rcnn.padding import blank_outside


class Backbone(Protocol):
    """What the detector needs of a backbone."""

    stride: int
    out_channels: int

    def __call__(self, images: Tensor, sizes: Tensor) -> Tensor: ...


class Compact(nn.Module):
    """A small net for the embedded model: nine 3×3 convolutions with batch normalisation, stride 16.

    Widths grow as the map shrinks so that no stage dominates the time; the strides sit in the convolutions because
    max pooling costs more than it brings at this size.
    """

    stride = 16
    out_channels = 128
    # (channels, stride) of each convolution
    LAYERS = ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1))

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.normalisations = nn.ModuleList()
        channels = 3
        for width, stride in self.LAYERS:
            convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            self.convolutions.append(convolution)
            self.normalisations.append(nn.BatchNorm2d(width))
            channels = width

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        features, stride = images, 1
        for (_, step), convolution, normalisation in zip(
            self.LAYERS, self.convolutions, self.normalisations, strict=True
        ):
            stride *= step
            features = blank_outside(F.relu(normalisation(convolution(features))), sizes, stride)
        return features


class VGG16(nn.Module):
    """VGG-16 up to conv5_3: the first 30 layers of torchvision's `features`, stride 16, 512 channels.

    The fifth max pooling is left out, as in the paper; layers keep torchvision's names (`features.0` …), so that its
    weights load as they are.
    """

    stride = 16
    out_channels = 512

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg16(weights=None).features[:30]

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        features, stride = images, 1
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, nn.MaxPool2d):
                stride *= 2
            elif isinstance(layer, nn.ReLU):
                features = blank_outside(features, sizes, stride)
        return features


BACKBONES: dict[str, type[Compact] | type[VGG16]] = {"compact": Compact, "vgg16": VGG16}


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where this hardware is faster in it, else None. float16 would need its loss scaled."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None
