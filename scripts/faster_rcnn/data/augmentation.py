"""Augmentation: random changes to a training image that keep its objects recognisable.

Flips, crops and colours are torchvision's v2 transforms, which also transform the boxes. The scale is changed by
resizing the original once, as the service does: resampling twice would blur the training images, but the images in
service are sharp.
"""

from dataclasses import replace

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from faster_rcnn.data.dataset import Sample
from faster_rcnn.detector.resize import ResizeRule, resize_image

AUGMENTATIONS = ("flip", "vertical-flip", "scale-jitter", "photometric")
SCALES = (0.75, 1.35)  # factors for both sides, drawn uniformly; a wider range helps only in longer training
VISIBLE = 0.3  # share of an object's area that must remain in a crop; with less it cannot be recognised
FLIPS = {"flip": v2.RandomHorizontalFlip(), "vertical-flip": v2.RandomVerticalFlip()}
# The changes are moderate (at most 0.03 of the colour circle in hue), because some classes differ in colour.
COLOURS = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03)


def prepare(sample: Sample, rule: ResizeRule, augmentations: tuple[str, ...], seed: int) -> Sample:
    """Resizes a sample by `rule` and applies the given AUGMENTATIONS; `seed` determines all random choices.

    An image that scale jitter enlarges is cropped to the size that the rule returns. Boxes and proposals are clipped to
    the crop, and dropped if too little of them remains.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scale = float(torch.empty(()).uniform_(*SCALES)) if "scale-jitter" in augmentations else 1.0
        jittered = ResizeRule(max(1, round(rule.min_size * scale)), max(1, round(rule.max_size * scale)))
        image, scale_x, scale_y = resize_image(sample.image, jittered)
        factors = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        proposals = None if sample.proposals is None else sample.proposals * factors
        resized = replace(sample, image=image, boxes=sample.boxes * factors, proposals=proposals)
        transforms: list[v2.Transform] = [FLIPS[name] for name in FLIPS if name in augmentations]
        if scale > 1:
            height, width = rule(*sample.image.shape[:2])
            transforms.append(v2.RandomCrop((min(height, image.shape[0]), min(width, image.shape[1]))))
        if "photometric" in augmentations:
            transforms.append(COLOURS)
        return _transformed(resized, v2.Compose(transforms)) if transforms else resized


def _transformed(sample: Sample, transform: v2.Compose) -> Sample:
    size = sample.image.shape[:2]
    inputs = {"image": tv_tensors.Image(torch.from_numpy(np.array(sample.image)).permute(2, 0, 1))}
    for name in ("boxes", "proposals"):
        if (boxes := getattr(sample, name)) is not None:
            inputs[name] = tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes).clone(), format="XYXY", canvas_size=size, clamping_mode=None
            )
    outputs = transform(inputs)
    image = np.ascontiguousarray(outputs["image"].permute(1, 2, 0).numpy())
    boxes, visible = _clip(outputs["boxes"].numpy(), image.shape[:2])
    proposals = None
    if "proposals" in outputs:
        clipped, kept = _clip(outputs["proposals"].numpy(), image.shape[:2])
        proposals = clipped[kept]
    return Sample(image, boxes[visible], sample.labels[visible], proposals=proposals)


def _clip(boxes: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to an image. Also returns a mask of those that keep VISIBLE of their area and a pixel per side."""
    height, width = size
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32)).astype(np.float32)
    sides, whole = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    untouched = (sides == whole).all(axis=1)  # an object that was not clipped is kept, however small it is
    return clipped, untouched | ((sides.prod(axis=1) >= VISIBLE * whole.prod(axis=1)) & (sides >= 1).all(axis=1))
