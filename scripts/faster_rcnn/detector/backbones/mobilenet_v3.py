"""MobileNetV3-Large (Howard et al. 2019), built from torchvision's blocks under torchvision's names.

N  images;  C  channels;  h, w  feature map size.
"""

import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from faster_rcnn.detector.backbones.base import Backbone, Stages
from faster_rcnn.detector.padding import blank_outside, mean_inside

# torchvision uses 0.01, which suits long training on ImageNet: the running statistics average over hundreds of batches.
# A detector that is trained from scratch would be evaluated with outdated statistics.
MOMENTUM = 0.1


class MobileNetV3Large(Backbone):
    """Blocks 0 to 15 of torchvision's `features`, with stride 16 and 160 channels; the last three blocks are dilated.

    At stride 32, a map would have a quarter of the anchor locations, and an object of 32 pixels would be one cell.
    Without the last three blocks, most of the pretrained weights would be lost. Dilation avoids both and keeps
    the weights (Howard et al., section 6.4, use it for segmentation). Block 16 is left out: it only increases the
    channels from 160 to 960, and would make fc6 six times as large.
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
        """The blocks, named by their number."""
        return [(str(number), [block]) for number, block in enumerate(self.features)]

    def maps(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The output of each block; values outside the image are undefined."""
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
    """Applies a block to features [N, C, h, w] of `stride`.  Returns its output and the output's stride."""
    hidden = features
    for layer in block.block:
        if isinstance(layer, SqueezeExcitation):
            hidden = squeeze_and_excite(layer, hidden, sizes, stride)
        else:
            hidden, stride = convolve(layer, hidden, sizes, stride)
    return (features + hidden if block.use_res_connect else hidden), stride


def convolve(layer: Conv2dNormActivation, features: Tensor, sizes: Tensor, stride: int) -> tuple[Tensor, int]:
    """Applies a convolution with its normalisation and activation.  Returns its output and the output's stride."""
    convolution = layer[0]
    if convolution.kernel_size[0] > 1:
        features = blank_outside(features, sizes, stride)
    return layer(features), stride * convolution.stride[0]


def squeeze_and_excite(layer: SqueezeExcitation, features: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """Squeeze-and-excitation whose mean covers only the image, not the padding."""
    squeezed = mean_inside(features, sizes, stride)[:, :, None, None]
    return features * layer.scale_activation(layer.fc2(layer.activation(layer.fc1(squeezed))))
