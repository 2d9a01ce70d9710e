"""VGG-16, the backbone of the papers (Simonyan and Zisserman 2015; Ren et al. 2015, section 4)."""

import torchvision
from torch import Tensor, nn

from faster_rcnn.detector.backbones.base import Backbone, Stages
from faster_rcnn.detector.padding import relu_inside


class VGG16(Backbone):
    """VGG-16 up to conv5_3: the first 30 layers of torchvision's `features`, stride 16, 512 channels.

    The fifth max pooling is left out, as in the paper. The layers keep torchvision's names (`features.0` …), so that
    its weights can be loaded unchanged.
    """

    stride = 16
    strides = (16,)
    out_channels = 512

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg16(weights=None).features[:30]

    @property
    def stages(self) -> Stages:
        """The stages conv1_1 … conv5_3, one convolution each."""
        found: Stages = []
        block = number = 1
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                block, number = block + 1, 1
            elif isinstance(layer, nn.Conv2d):
                found.append((f"conv{block}_{number}", [layer]))
                number += 1
        return found

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        features, stride = images, 1
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                features = relu_inside(features, sizes, stride, images.shape[2:])
                continue
            features = layer(features)
            if isinstance(layer, nn.MaxPool2d):
                stride *= 2
        return [features]
