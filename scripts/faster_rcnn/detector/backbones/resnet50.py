"""ResNet-50 (He et al. 2016), built from torchvision's blocks under torchvision's names.

N  images;  h, w  feature map size;  C2 … C5  the usual names of the outputs of layer1 … layer4.
"""

from collections.abc import Sequence

import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.resnet import Bottleneck

from faster_rcnn.detector.backbones.base import Backbone, Stages
from faster_rcnn.detector.padding import blank_outside, relu_inside


class ResNet50(Backbone):
    """The first `layers` of layer1 … layer4 of ResNet-50. With three, the output is C4: stride 16, 1024 channels.

    He et al. use layer4 as the head, after RoI pooling. Here the head of every backbone consists of the papers'
    fc6 and fc7, so layer4 is left out.
    """

    out_channels = 1024
    stride = 16
    strides = (16,)

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        whole = torchvision.models.resnet50(weights=None)
        self.conv1, self.bn1, self.maxpool = whole.conv1, whole.bn1, whole.maxpool
        self.layer_names = [f"layer{number}" for number in range(1, layers + 1)]
        for name in self.layer_names:
            self.add_module(name, getattr(whole, name))

    @property
    def stages(self) -> Stages:
        """The stages: conv1 with its normalisation, then layer1, layer2 and so on."""
        return [("conv1", [self.conv1, self.bn1]), *((name, [self.get_submodule(name)]) for name in self.layer_names)]

    def maps(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The maps C2, C3 … with strides 4, 8 …; values outside the image are undefined."""
        features = self.maxpool(relu_inside(self.bn1(self.conv1(images)), sizes, 2, images.shape[2:]))
        found, stride = [], 4
        for name in self.layer_names:
            for block in getattr(self, name):
                features = bottleneck(block, features, sizes, stride, images.shape[2:])
                stride *= block.stride
            found.append(features)
        return found

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        return [blank_outside(self.maps(images, sizes)[-1], sizes, self.stride)]


def bottleneck(block: Bottleneck, features: Tensor, sizes: Tensor, stride: int, canvas: Sequence[int]) -> Tensor:
    """Applies a block to features [N, C, h, w] of `stride`.  canvas: H, W.

    Only its second convolution is wider than 1×1, so only that one needs zeros outside the image.
    """
    shortcut = features if block.downsample is None else block.downsample(features)
    hidden = relu_inside(block.bn1(block.conv1(features)), sizes, stride, canvas)
    hidden = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(hidden)))))
    return F.relu(hidden + shortcut)
