"""Training batches: images of about the same aspect ratio, resized, augmented and padded onto one canvas.

N  images;  H, W  canvas.  The order of the images and what is done to each are a function of the seed and the number
of the batch alone, so that a run can go on from any batch, and several processes can share one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from faster_rcnn.data.augmentation import prepare
from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.detector.resize import ResizeRule

# Batches whose images are sorted by aspect ratio together: enough for a batch to hold like with like, few enough that
# the order stays random.
WINDOW = 16


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image.  boxes: float [G, 4] in canvas pixels;  labels: int64 [G] from 0."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """images: uint8 [N, H, W, 3];  sizes: int64 [N, 2], height and width;  truth: the objects of each image.

    seeds: one an image, for what is drawn at random of it;  proposals: float [P, 4] for each image, in canvas pixels,
    where the data set brings them.
    """

    images: Tensor
    sizes: Tensor
    truth: list[GroundTruth]
    seeds: list[int]
    proposals: list[Tensor] | None = None

    def to(self, device: torch.device) -> "Batch":
        truth = [GroundTruth(one.boxes.to(device), one.labels.to(device)) for one in self.truth]
        proposals = None if self.proposals is None else [boxes.to(device) for boxes in self.proposals]
        return Batch(self.images.to(device), self.sizes.to(device), truth, self.seeds, proposals)


Item = tuple[int, int]  # index in the data set, seed of what is done to the image


def batch_order(dataset: Dataset, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Item]]:
    """The endless sequence of batches from number `start` on, an image at most once an epoch.

    What is left over when an epoch's images do not fill a last batch waits for another epoch.

    Raises ValueError if the data set has not enough images for one batch.
    """
    if len(dataset) < batch_size:
        raise ValueError(f"the data set has {len(dataset)} images, a batch takes {batch_size}; lower --batch-size")
    batches_an_epoch = len(dataset) // batch_size
    number = start
    for epoch in count(start // batches_an_epoch):
        skip = number - epoch * batches_an_epoch
        for indices in islice(_epoch(dataset, batch_size, [seed, epoch]), skip, None):
            seeds = np.random.SeedSequence([seed, number]).generate_state(batch_size).tolist()
            yield list(zip(indices, seeds, strict=True))
            number += 1


def _epoch(dataset: Dataset, batch_size: int, seed: list[int]) -> Iterator[list[int]]:
    """The batches of one epoch: random, but like with like."""
    batches = len(dataset) // batch_size
    order = np.random.default_rng(seed).permutation(len(dataset))
    for window in range(-(-batches // WINDOW)):
        end = min((window + 1) * WINDOW, batches) * batch_size
        indices = order[window * WINDOW * batch_size : end].tolist()
        ratios = {index: height / width for index in indices for height, width in [dataset.size(index)]}
        by_ratio = sorted(indices, key=lambda index: (ratios[index], index))
        groups = [by_ratio[place : place + batch_size] for place in range(0, len(by_ratio), batch_size)]
        for group in np.random.default_rng([*seed, window]).permutation(len(groups)):
            yield groups[group]


@dataclass(frozen=True)
class Share:
    """Which part of each batch a process takes, and in how many steps: process `rank` of `processes`, in `parts`."""

    rank: int = 0
    processes: int = 1
    parts: int = 1

    def check(self, batch_size: int) -> None:
        """Raises ValueError if a batch cannot be dealt out evenly, as the mean over its images asks for."""
        if batch_size % (self.processes * self.parts):
            raise ValueError(
                f"a batch of {batch_size} images is not dealt out evenly to {self.processes} processes × "
                f"{self.parts} parts; choose another --batch-size or --accumulate"
            )

    def of(self, batches: Iterator[list[Item]]) -> Iterator[list[Item]]:
        """The micro-batches of this process, `parts` for each batch."""
        for batch in batches:
            size = len(batch) // (self.processes * self.parts)
            first = self.rank * self.parts * size
            for part in range(self.parts):
                yield batch[first + part * size : first + (part + 1) * size]


class _Items(torch.utils.data.Dataset[tuple[Sample, int]]):
    """The data set behind a DataLoader: one resized, augmented sample for each item."""

    def __init__(
        self, dataset: Dataset, rule: ResizeRule, augmentations: tuple[str, ...], with_difficult: bool
    ) -> None:
        self.dataset = dataset
        self.rule = rule
        self.augmentations = augmentations
        self.with_difficult = with_difficult

    def __getitem__(self, item: Item) -> tuple[Sample, int]:
        index, seed = item
        sample = self.dataset[index].objects(self.with_difficult)
        return prepare(sample, self.rule, self.augmentations, seed), seed


def collate(samples: list[Sample], stride: int, seeds: list[int] | None = None) -> Batch:
    """Puts samples onto the smallest canvas that holds them all, its sides multiples of `stride`."""
    sizes = np.array([sample.image.shape[:2] for sample in samples], np.int64)
    height, width = (-(-sizes.max(axis=0) // stride) * stride).tolist()
    images = np.zeros((len(samples), height, width, 3), np.uint8)
    for place, (sample, (h, w)) in enumerate(zip(samples, sizes.tolist(), strict=True)):
        images[place, :h, :w] = sample.image
    truth = [GroundTruth(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)) for sample in samples]
    given = [torch.from_numpy(sample.proposals) for sample in samples if sample.proposals is not None]
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(sizes),
        truth,
        seeds if seeds is not None else list(range(len(samples))),
        given if len(given) == len(samples) else None,
    )


def _collate_items(items: list[tuple[Sample, int]], stride: int) -> Batch:
    return collate([sample for sample, _ in items], stride, [seed for _, seed in items])


@dataclass(frozen=True)
class Loading:
    """How batches are made.  batch_size: images a batch, over all processes and parts;  workers: processes that
    prepare images, 0: this one;  with_difficult: whether VOC's difficult objects are trained on."""

    batch_size: int
    seed: int
    workers: int = 0
    augmentations: tuple[str, ...] = ("flip",)
    with_difficult: bool = False


def training_batches(
    dataset: Dataset, rule: ResizeRule, stride: int, loading: Loading, start: int = 0, share: Share | None = None
) -> Iterator[Batch]:
    """The endless batches of a run from number `start` on, or a process's share of them."""
    share = share or Share()
    share.check(loading.batch_size)
    loader = DataLoader(
        _Items(dataset, rule, loading.augmentations, loading.with_difficult),
        batch_sampler=share.of(batch_order(dataset, loading.batch_size, loading.seed, start)),
        num_workers=loading.workers,
        collate_fn=partial(_collate_items, stride=stride),
        prefetch_factor=4 if loading.workers else None,
        generator=torch.Generator(),  # the global one would lose a number to each start
    )
    return iter(loader)
