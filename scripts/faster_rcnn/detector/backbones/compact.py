"""The small backbone of `shapes`, the model that the repository contains."""

from torch import Tensor, nn

from faster_rcnn.detector.backbones.base import Backbone, Stages
from faster_rcnn.detector.padding import relu_inside


class Compact(Backbone):
    """Nine 3×3 convolutions with batch normalisation, stride 16.

    The number of channels grows as the map shrinks, so that no stage dominates the running time. Convolutions are
    strided, because max pooling costs more than it gains at this size.
    """

    stride = 16
    strides = (16,)
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

    @property
    def stages(self) -> Stages:
        """The stages conv1 … conv9: one convolution and its normalisation each."""
        pairs = zip(self.convolutions, self.normalisations, strict=True)
        return [(f"conv{number}", list(pair)) for number, pair in enumerate(pairs, start=1)]

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        features, stride = images, 1
        for (_, step), convolution, normalisation in zip(
            self.LAYERS, self.convolutions, self.normalisations, strict=True
        ):
            stride *= step
            features = relu_inside(normalisation(convolution(features)), sizes, stride, images.shape[2:])
        return [features]
