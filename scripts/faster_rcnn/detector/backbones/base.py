"""What a backbone is to the detector.

N  images;  H, W  canvas;  h, w = ceil(H / stride), ceil(W / stride) of each map;  C  channels.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

Stages = list[tuple[str, list[nn.Module]]]


class Backbone(nn.Module, ABC):
    """Images to the feature maps that the RPN and the head share.

    Takes normalised images [N, 3, H, W] that are zero outside `sizes`, and gives its maps, finest first, each
    [N, C, h, w], zero outside `sizes` too and dependent on nothing that lies there (see `padding.py`).
    """

    stride: int  # what the sides of a canvas are multiples of
    strides: tuple[int, ...]  # of each map
    pooled: int = 1  # of how many maps, counted from the finest, the head's regions are pooled
    out_channels: int  # of every map
    signed: bool = False  # a map may be negative, as nothing rectifies it

    @property
    @abstractmethod
    def stages(self) -> Stages:
        """The layers as users name them, from the input on; fine-tuning starts at one of them."""

    @abstractmethod
    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]: ...
