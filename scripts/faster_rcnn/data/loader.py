"""Training batches: images of similar aspect ratio, resized, augmented and padded onto one canvas.

N  images;  H, W  canvas;  G  objects;  P  proposals.
The order of the images and the augmentation of each depend only on the run's seed and the number of the batch, so that
a training run can continue from any batch and several processes can share one.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from faster_rcnn.data.augmentation import prepare
from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.data.worker_processes import choose_way, leave_signals_to_the_parent
from faster_rcnn.detector.resize import ResizeRule

# Number of batches whose images are sorted by aspect ratio together: enough that the images of a batch have similar
# ratios, few enough that the order remains random.
WINDOW = 16


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image.  boxes: float [G, 4] in canvas pixels;  labels: int64 [G] from 0."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """Images on one canvas and their objects.

    images: uint8 [N, H, W, 3];  sizes: int64 [N, 2], height and width;  truth: the objects of each image;
    seeds: one for each image, for its random choices in the training step;
    proposals: float [P, 4] for each image, in canvas pixels; None if the data set has none.
    """

    images: Tensor
    sizes: Tensor
    truth: list[GroundTruth]
    seeds: list[int]
    proposals: list[Tensor] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        truth = [GroundTruth(one.boxes.to(device), one.labels.to(device)) for one in self.truth]
        proposals = None if self.proposals is None else [boxes.to(device) for boxes in self.proposals]
        return Batch(self.images.to(device), self.sizes.to(device), truth, self.seeds, proposals)


Item = tuple[int, int]  # an image's index in the data set, and the seed of its random choices


def batch_order(dataset: Dataset, batch_size: int, seed: int, start: int = 0) -> Iterator[list[Item]]:
    """An endless sequence of batches, starting with number `start`.

    An epoch contains each image at most once. Images that do not fill the last batch are dropped; the random order of
    each epoch decides which.

    Raises ValueError if the data set has fewer images than one batch.
    """
    if len(dataset) < batch_size:
        raise ValueError(f"the data set has {len(dataset)} images, but a batch needs {batch_size}; lower --batch-size")
    batches_per_epoch = len(dataset) // batch_size
    number = start
    for epoch in count(start // batches_per_epoch):
        skip = number - epoch * batches_per_epoch
        for indices in islice(_epoch(dataset, batch_size, [seed, epoch]), skip, None):
            seeds = np.random.SeedSequence([seed, number]).generate_state(batch_size).tolist()
            yield list(zip(indices, seeds, strict=True))
            number += 1


def _epoch(dataset: Dataset, batch_size: int, seed: list[int]) -> Iterator[list[int]]:
    """The batches of one epoch, as indices, in random order; the images of each have similar aspect ratios."""
    batches = len(dataset) // batch_size
    order = np.random.default_rng(seed).permutation(len(dataset))
    for window in range(-(-batches // WINDOW)):
        end = min((window + 1) * WINDOW, batches) * batch_size
        indices = order[window * WINDOW * batch_size : end].tolist()
        ratios = {index: height / width for index in indices for height, width in [dataset.size(index)]}
        by_ratio = sorted(indices, key=lambda index: (ratios[index], index))
        groups = [by_ratio[first : first + batch_size] for first in range(0, len(by_ratio), batch_size)]
        for group in np.random.default_rng([*seed, window]).permutation(len(groups)):
            yield groups[group]


@dataclass(frozen=True)
class Share:
    """The part of each batch that process `rank` of `processes` computes, split into `micro_batches`.

    on_this_machine: the number of processes that share its memory; None: all of them.
    """

    rank: int = 0
    processes: int = 1
    micro_batches: int = 1
    on_this_machine: int | None = None

    def check(self, batch_size: int) -> None:
        """Raises ValueError unless all micro-batches have the same size, as the mean over a batch requires."""
        if batch_size % (self.processes * self.micro_batches):
            raise ValueError(
                f"a batch of {batch_size} images cannot be divided evenly among {self.processes} processes × "
                f"{self.micro_batches} micro-batches; choose another --batch-size or --accumulate"
            )

    def of(self, batches: Iterator[list[Item]]) -> Iterator[list[Item]]:
        """The micro-batches of this process, `micro_batches` for each batch."""
        for batch in batches:
            size = len(batch) // (self.processes * self.micro_batches)
            first = self.rank * self.micro_batches * size
            for number in range(self.micro_batches):
                yield batch[first + number * size : first + (number + 1) * size]


class _Items(torch.utils.data.Dataset[tuple[Sample, int]]):
    """The data set in the form that a DataLoader reads: a resized, augmented sample for each item."""

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
    """Puts samples onto the smallest canvas that holds them all and whose sides are multiples of `stride`.

    seeds: one for each sample; default: 0, 1, 2 …
    """
    sizes = np.array([sample.image.shape[:2] for sample in samples], np.int64)
    height, width = (-(-sizes.max(axis=0) // stride) * stride).tolist()
    images = np.zeros((len(samples), height, width, 3), np.uint8)
    for number, (sample, (h, w)) in enumerate(zip(samples, sizes.tolist(), strict=True)):
        images[number, :h, :w] = sample.image
    truth = [GroundTruth(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)) for sample in samples]
    proposals = [torch.from_numpy(sample.proposals) for sample in samples if sample.proposals is not None]
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(sizes),
        truth,
        seeds if seeds is not None else list(range(len(samples))),
        proposals if len(proposals) == len(samples) else None,
    )


def _collate_items(items: list[tuple[Sample, int]], stride: int) -> Batch:
    return collate([sample for sample, _ in items], stride, [seed for _, seed in items])


def _pickled(collate_items: Callable[[list[tuple[Sample, int]]], Batch], items: list[tuple[Sample, int]]) -> bytes:
    """The batch as bytes, which pass through a pipe; tensors would pass through shared memory."""
    return pickle.dumps(collate_items(items), protocol=pickle.HIGHEST_PROTOCOL)


@dataclass(frozen=True)
class Loading:
    """How training batches are formed.

    batch_size: images in a batch, over all processes and micro-batches;  workers: number of processes that prepare
    images; with 0 this process prepares them;  with_difficult: whether VOC's difficult objects are trained on.
    """

    batch_size: int
    seed: int
    workers: int = 0
    augmentations: tuple[str, ...] = ("flip",)
    with_difficult: bool = False


def training_batches(
    dataset: Dataset, rule: ResizeRule, stride: int, loading: Loading, start: int = 0, share: Share | None = None
) -> Iterator[Batch]:
    """An endless sequence of batches, starting with number `start`, or only the share of one process."""
    share = share or Share()
    share.check(loading.batch_size)
    images = loading.batch_size // (share.processes * share.micro_batches)
    neighbours = share.on_this_machine or share.processes
    way = choose_way(loading.workers, images * rule.min_size * rule.max_size * 3, neighbours)
    if way.remark and share.rank == 0:
        print(way.remark)
    collate_items = partial(_collate_items, stride=stride)
    loader = DataLoader(
        _Items(dataset, rule, loading.augmentations, loading.with_difficult),
        batch_sampler=share.of(batch_order(dataset, loading.batch_size, loading.seed, start)),
        num_workers=way.workers,
        collate_fn=collate_items if way.shared else partial(_pickled, collate_items),
        prefetch_factor=way.prefetch if way.workers else None,
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator(),  # the default would draw a number from the global generator at each start
    )
    # pickle.loads reads only what a worker process of this run has written.
    return iter(loader) if way.shared else map(pickle.loads, loader)
