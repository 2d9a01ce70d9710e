"""The interface of backbones.

N  images;  H, W  canvas size;  h, w  size of a map: ceil(H / stride), ceil(W / stride);  C  channels.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

Stages = list[tuple[str, list[nn.Module]]]


class Backbone(nn.Module, ABC):
    """Computes the feature maps that the RPN and the head share.

    Accepts normalised images [N, 3, H, W] that are zero outside `sizes`. Returns its maps, finest first, each
    [N, C, h, w]. They are zero outside `sizes` too, and do not depend on the pixels there (see `padding.py`).
    """

    stride: int  # the height and width of a canvas must be multiples of it
    strides: tuple[int, ...]  # the stride of each map
    pooled: int = 1  # number of maps, starting with the finest, from which the head's regions are pooled
    out_channels: int  # channels of every map
    signed: bool = False  # whether maps may contain negative values, because their last layer has no activation

    @property
    @abstractmethod
    def stages(self) -> Stages:
        """Groups of layers under the names that --trainable-from accepts, starting at the input."""

    @abstractmethod
    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]: ...
