"""Feature pyramids (Lin et al. 2017) on a backbone's maps, built from torchvision's layers under torchvision's names.

N  images;  h, w  feature map size;  P2 … P5  the pyramid's maps of strides 4 … 32, as the paper calls them.
"""

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from faster_rcnn.detector.backbones.base import Backbone, Stages
from faster_rcnn.detector.backbones.mobilenet_v3 import MobileNetV3Large
from faster_rcnn.detector.backbones.resnet50 import ResNet50
from faster_rcnn.detector.padding import blank_outside

Ints = tuple[int, ...]


class FeaturePyramid(Backbone):
    """Merges a body's maps from the coarsest to the finest (section 3).

    Every second cell of the coarsest map forms an additional map. Only the RPN uses it, for its largest anchors
    (section 4.1).
    """

    out_channels = 256  # section 3
    signed = True

    def __init__(self, body: ResNet50 | MobileNetV3Large, taps: Ints, channels: Ints, strides: Ints) -> None:
        """taps: indices of the body's maps to merge;  channels, strides: one value for each of these maps."""
        super().__init__()
        self.body = body
        self.taps = taps
        self.fpn = FeaturePyramidNetwork(list(channels), self.out_channels)
        self.stride = strides[-1]
        self.strides = (*strides, 2 * strides[-1])
        # Eq. 1 chooses a region's map by stride, so only the first of several maps with the same stride is used.
        self.pooled = len(set(strides))

    @property
    def stages(self) -> Stages:
        """The body's stages; the pyramid's own layers are always trained."""
        return self.body.stages

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        maps = self.body.maps(images, sizes)
        found: list[Tensor] = []
        merged: Tensor | None = None
        for number in reversed(range(len(self.taps))):
            lateral = self.fpn.inner_blocks[number](maps[self.taps[number]])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            merged = blank_outside(lateral, sizes, self.strides[number])
            found.insert(0, blank_outside(self.fpn.layer_blocks[number](merged), sizes, self.strides[number]))
        return [*found, F.max_pool2d(found[-1], 1, stride=2)]


def resnet50_fpn() -> FeaturePyramid:
    """ResNet-50 with the pyramid's maps P2 … P5 and the additional P6 (section 4.1)."""
    return FeaturePyramid(ResNet50(layers=4), (0, 1, 2, 3), (256, 512, 1024, 2048), (4, 8, 16, 32))


def mobilenet_v3_large_fpn() -> FeaturePyramid:
    """MobileNetV3-Large with a pyramid on its blocks 13 and 16, as in torchvision; both have stride 32."""
    return FeaturePyramid(MobileNetV3Large(dilated=False, blocks=17), (13, 16), (160, 960), (32, 32))
