"""Training batches: pictures of about the same aspect ratio, resized and padded onto one canvas.

N  images;  H, W  canvas.  The order and the flips are a function of the seed and the number of the batch alone, so that
a run can go on from any batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.resize import ResizeRule, resize_image

# Batches whose pictures are sorted by aspect ratio together: enough for a batch to hold like with like, few enough that
# the order stays random.
WINDOW = 16


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image.  boxes: float [G, 4] in canvas pixels;  labels: int64 [G] from 0."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """images: uint8 [N, H, W, 3];  sizes: int64 [N, 2], height and width;  truth: the objects of each image."""

    images: Tensor
    sizes: Tensor
    truth: list[GroundTruth]

    def to(self, device: torch.device) -> "Batch":
        truth = [GroundTruth(one.boxes.to(device), one.labels.to(device)) for one in self.truth]
        return Batch(self.images.to(device), self.sizes.to(device), truth)


Item = tuple[int, bool]  # index in the data set, mirrored


def batch_order(dataset: Dataset, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Item]]:
    """The endless sequence of batches from number `start` on, a picture at most once an epoch.

    What is left over when an epoch's pictures do not fill a last batch waits for another epoch.

    Raises ValueError if the data set has not enough pictures for one batch.
    """
    if len(dataset) < batch_size:
        raise ValueError(f"the data set has {len(dataset)} pictures, a batch takes {batch_size}; lower --batch-size")
    batches_an_epoch = len(dataset) // batch_size
    for epoch in count(start // batches_an_epoch):
        order = np.random.default_rng([seed, epoch]).permutation(len(dataset))
        skip = start - epoch * batches_an_epoch if epoch == start // batches_an_epoch else 0
        for window in range(skip // WINDOW, -(-batches_an_epoch // WINDOW)):
            rng = np.random.default_rng([seed, epoch, window])
            end = min((window + 1) * WINDOW, batches_an_epoch) * batch_size
            indices = order[window * WINDOW * batch_size : end].tolist()
            sizes = [dataset.size(index) for index in indices]
            by_ratio = [
                index
                for _, index in sorted(
                    (height / width, index) for (height, width), index in zip(sizes, indices, strict=True)
                )
            ]
            groups = [by_ratio[place : place + batch_size] for place in range(0, len(by_ratio), batch_size)]
            mirrored = rng.random((len(groups), batch_size)) < 0.5
            batches = [
                list(zip(groups[group], mirrored[group].tolist(), strict=True))
                for group in rng.permutation(len(groups))
            ]
            yield from islice(batches, max(0, skip - window * WINDOW), None)


class _Items(torch.utils.data.Dataset[Sample]):
    """The data set behind a DataLoader: one resized, perhaps mirrored sample for each item."""

    def __init__(self, dataset: Dataset, rule: ResizeRule) -> None:
        self.dataset = dataset
        self.rule = rule

    def __getitem__(self, item: Item) -> Sample:
        index, mirrored = item
        sample = self.dataset[index].objects()
        image, scale_x, scale_y = resize_image(sample.image, self.rule)
        boxes = sample.boxes * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        if mirrored:
            image = image[:, ::-1]
            boxes = np.stack([image.shape[1] - boxes[:, 2], boxes[:, 1], image.shape[1] - boxes[:, 0], boxes[:, 3]], 1)
        return Sample(image, boxes, sample.labels)


def collate(samples: list[Sample], stride: int) -> Batch:
    """Puts samples onto the smallest canvas that holds them all, its sides multiples of `stride`."""
    sizes = np.array([sample.image.shape[:2] for sample in samples], np.int64)
    height, width = (-(-sizes.max(axis=0) // stride) * stride).tolist()
    images = np.zeros((len(samples), height, width, 3), np.uint8)
    for place, (sample, (h, w)) in enumerate(zip(samples, sizes.tolist(), strict=True)):
        images[place, :h, :w] = sample.image
    truth = [GroundTruth(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)) for sample in samples]
    return Batch(torch.from_numpy(images), torch.from_numpy(sizes), truth)


def training_batches(
    dataset: Dataset, rule: ResizeRule, stride: int, batch_size: int, seed: int, start: int, workers: int
) -> Iterator[Batch]:
    """The endless batches of a run from number `start` on, made by `workers` processes (0: by this one)."""
    loader = DataLoader(
        _Items(dataset, rule),
        batch_sampler=batch_order(dataset, batch_size, seed, start),
        num_workers=workers,
        collate_fn=partial(collate, stride=stride),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the global one would lose a number to each start, and a resumed run differ
    )
    return iter(loader)
