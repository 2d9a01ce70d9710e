"""MobileNetV3-Large (Howard et al. 2019), from torchvision's own blocks under torchvision's own names.

N  images;  C  channels;  h, w  feature map size.
"""

import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from faster_rcnn.detector.backbones.base import Backbone, Stages
from faster_rcnn.detector.padding import blank_outside, mean_inside

# Torchvision's 0.01 is for training on ImageNet: the running statistics follow over hundreds of batches, and a detector
# that learns from scratch answers with those of its past.
MOMENTUM = 0.1


class MobileNetV3Large(Backbone):
    """The blocks 0 … 15 of torchvision's `features`, the last three dilated and not strided: stride 16, 160 channels.

    At stride 32 a map has a quarter of the anchors' places and an object of 32 pixels is one cell; without the last
    three blocks it would lose most of what pretraining has learnt. Dilation keeps both, with the same weights (Howard
    et al., section 6.4, do so for segmentation). Block 16 only widens 160 to 960 channels, and fc6 with them six times.
    """

    out_channels = 160
    stride = 16
    strides = (16,)
    signed = True  # a block ends in a projection without an activation

    def __init__(self, dilated: bool = True, blocks: int = 16) -> None:
        super().__init__()
        self.features = torchvision.models.mobilenet_v3_large(weights=None, dilated=dilated).features[:blocks]
        for module in self.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    @property
    def stages(self) -> Stages:
        """The blocks by their number."""
        return [(str(number), [block]) for number, block in enumerate(self.features)]

    def maps(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The output of each block; what it holds outside the image means nothing."""
        found: list[Tensor] = []
        features, stride = images, 1
        for block in self.features:
            if isinstance(block, InvertedResidual):
                features, stride = inverted_residual(block, features, sizes, stride)
            else:
                features, stride = convolve(block, features, sizes, stride)
            found.append(features)
        return found

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        return [blank_outside(self.maps(images, sizes)[-1], sizes, self.stride)]


def inverted_residual(block: InvertedResidual, features: Tensor, sizes: Tensor, stride: int) -> tuple[Tensor, int]:
    """A block's output and its stride from its input [N, C, h, w] of `stride`."""
    hidden = features
    for layer in block.block:
        if isinstance(layer, SqueezeExcitation):
            hidden = squeeze_and_excite(layer, hidden, sizes, stride)
        else:
            hidden, stride = convolve(layer, hidden, sizes, stride)
    return (features + hidden if block.use_res_connect else hidden), stride


def convolve(layer: Conv2dNormActivation, features: Tensor, sizes: Tensor, stride: int) -> tuple[Tensor, int]:
    """A convolution with its normalisation and activation, and the stride after it."""
    convolution = layer[0]
    if convolution.kernel_size[0] > 1:
        features = blank_outside(features, sizes, stride)
    return layer(features), stride * convolution.stride[0]


def squeeze_and_excite(layer: SqueezeExcitation, features: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """Squeeze-and-excitation whose mean is over the image and not over its canvas."""
    squeezed = mean_inside(features, sizes, stride)[:, :, None, None]
    return features * layer.scale_activation(layer.fc2(layer.activation(layer.fc1(squeezed))))
