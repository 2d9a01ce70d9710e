"""The sizes of anchors and the feature maps that they belong to, without torch, which takes long to import.

k  anchors per location.
"""

from collections.abc import Sequence

import numpy as np

from faster_rcnn.detector.config import DetectorConfig

# The strides of each backbone's feature maps, finest map first.
STRIDES: dict[str, tuple[int, ...]] = {
    "compact": (16,),
    "mobilenet_v3_large": (16,),
    "mobilenet_v3_large_fpn": (32, 32, 64),
    "resnet50": (16,),
    "resnet50_fpn": (4, 8, 16, 32, 64),
    "vgg16": (16,),
}


def anchor_sizes(scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Width and height of the k = len(scales) * len(ratios) anchors of one location, float32 [k, 2].

    scales: for each anchor, the side of the square that has the same area, in pixels;  ratios: height / width.
    An anchor of scale s has area s² at every ratio (Ren et al. 2015, section 3.1.1: "box areas of 128², 256² and
    512²"). All scales of the first ratio come first, then those of the second, and so on, as in the reference code.
    """
    scale, root = np.asarray(scales, np.float32), np.sqrt(np.asarray(ratios, np.float32))[:, None]
    return np.stack([(scale / root).reshape(-1), (root * scale).reshape(-1)], axis=1)


def scales_of_maps(config: DetectorConfig, maps: int) -> list[tuple[float, ...]]:
    """The anchor scales of each feature map, finest map first; every map has the same number of scales.

    A single map has all scales (Ren et al. 2015, section 3.1.1). In a pyramid of five maps each has one of five scales
    (Lin et al. 2017, section 4.1).
    Raises ValueError if the scales cannot be divided evenly among the maps.
    """
    scales, per_map = config.anchor_scales, len(config.anchor_scales) // maps
    if per_map * maps != len(scales) or not scales:
        raise ValueError(
            f"{config.backbone} has {maps} feature maps, but {len(scales)} anchor scales are given; "
            f"give {maps} or a multiple of {maps}"
        )
    return [scales[number * per_map : (number + 1) * per_map] for number in range(maps)]
