"""Chooses the images of a device's next run. It uses no threads and no clock, so that a simulation can drive it.

Waiting images are taken in order of rank: the batch key whose first image has the smallest rank is run next, with as
many of its images as the engine wants.

On some engines a run is slow if its shape (canvas and number of images) differs from the shape before, because cuDNN
prepares every convolution again. There the images of the same shape may go first, for a limited time: an image is
passed only by batches whose first image has a rank at most SHAPE_PATIENCE later than its own. In a long queue, each
batch key then gets one series of runs for every SHAPE_PATIENCE of arrivals. A limit on the waiting time would have the
opposite effect there: all images would exceed it, every run would change the shape, and the queue would grow.

A device may have more threads than runs (`Device.lanes`), so that a batch is prepared while another one runs. Such a
batch is formed only if it is full, because images that arrive until the end of the run could not join it.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

from service.engine.devices import Device
from service.queue.tasks import BatchKey, Head, RunnableModel, TaskQueue

SHAPE_PATIENCE = 1.0  # seconds
# Preparing a convolution takes about 1.2 ms, and starting a kernel 5 to 8 us, whatever the number of images. So another
# shape costs as much as the fixed part of 8 runs of a small detector (16 convolutions, 430 nodes), or of 22 runs of a
# ResNet-50 (90 and 780).
RUNS_PER_CHANGE = 10


class Choice(NamedTuple):
    """The images of a run: the first `images` ready tasks with this key."""

    key: BatchKey
    images: int


class Shape(NamedTuple):
    """What a session prepares itself for on a device with `prefers_same_shape`."""

    canvas: tuple[int, int]
    images: int


class BatchChoice:
    """The choice for one device, which depends on the batches that were formed there. The batcher's lock guards it."""

    def __init__(self, device: Device, runs_in_all: int) -> None:
        """runs_in_all: concurrent runs of all devices together"""
        self._device = device
        self._runs_in_all = runs_in_all
        self._preparing: set[object] = set()
        self._executing: set[object] = set()
        # for each model the last shape of its two sessions, by `proposals_only`
        self._last_shapes: WeakKeyDictionary[RunnableModel, dict[bool, Shape]] = WeakKeyDictionary()

    def next(self, queue: TaskQueue) -> Choice | None:
        """The images that the device should run next, or None if it should wait for more images or for its runs."""
        if self._preparing and len(self._preparing) >= self._device.runs:
            return None  # a batch formed now could overtake one that is being prepared
        share = self._share(queue)
        head = min(queue.heads(), key=lambda head: self._rank(head, share), default=None)
        if head is None:
            return None
        images = self._images(head.key, min(head.ready, share))
        if self._all_runs_are_taken() and images < self._taken(head.key, self._capacity(head.key)):
            return None  # it is not full, so images that arrive until then can still join it
        return Choice(head.key, images)

    def has_full_batch(self, queue: TaskQueue) -> bool:
        """Whether a batch is already as large as it may be, so that decoding further images would not enlarge it."""
        share = self._share(queue)
        return any(ready >= self._taken(key, share) for key, ready, _ in queue.heads())

    def formed(self, batch: object, key: BatchKey, images: int) -> bool:
        """Must be called for every batch, in the order in which they will run.

        Returns whether the device must prepare itself for its shape.
        """
        if self._device.prepares_ahead:
            self._preparing.add(batch)
        if not key.model.engine_on(self._device).prefers_same_shape:
            return False
        shapes = self._last_shapes.setdefault(key.model, {})
        before, shapes[key.proposals_only] = shapes.get(key.proposals_only), Shape(key.canvas, images)
        return before != shapes[key.proposals_only]

    def began(self, batch: object) -> None:
        """Must be called when the batch has got its turn, if the device prepares ahead."""
        self._preparing.discard(batch)
        self._executing.add(batch)

    def ended(self, batch: object) -> None:
        """Must be called when the batch, or its failure, needs the device no more, if the device prepares ahead."""
        self._preparing.discard(batch)
        self._executing.discard(batch)

    def _all_runs_are_taken(self) -> bool:
        return self._device.prepares_ahead and len(self._preparing) + len(self._executing) >= self._device.runs

    def _share(self, queue: TaskQueue) -> int:
        """The number of images that one run may take now.

        The queue is divided among all engines, not only among the idle ones. The busy engines will soon be free, and
        would have no work if one engine took everything.
        """
        return math.ceil(len(queue) / (self._runs_in_all * self._device.depth))

    def _capacity(self, key: BatchKey) -> int:
        """Images with this key that the device's budget allows in one batch."""
        return max(1, self._device.budget.pixels // math.prod(key.canvas))

    def _taken(self, key: BatchKey, images: int) -> int:
        """How many of so many images the engine takes at once."""
        return key.model.engine_on(self._device).images_to_take(key.canvas, images, self._capacity(key))

    def _rank(self, head: Head, share: int) -> float:
        """The rank of a key's first image; smaller if the shape of its batch is the last one."""
        key = head.key
        if not key.model.engine_on(self._device).prefers_same_shape:
            return head.rank
        shape = Shape(key.canvas, self._images(key, min(head.ready, share)))
        return head.rank - SHAPE_PATIENCE * (shape == self._last_shape(key))

    def _images(self, key: BatchKey, ready: int) -> int:
        """How many of `ready` images a run should take now."""
        most = self._taken(key, ready)
        if not key.model.engine_on(self._device).prefers_same_shape:
            return most
        last = self._last_shape(key)
        warm = last.images if last and last.canvas == key.canvas else 0
        return min(range(most, 0, -1), key=lambda images: _cost(images, ready, warm))

    def _last_shape(self, key: BatchKey) -> Shape | None:
        return self._last_shapes.get(key.model, {}).get(key.proposals_only)


def _cost(images: int, ready: int, warm: int) -> int:
    """The fixed cost of running the `ready` images, that many at once, in units of the fixed cost of a run.

    warm  the number of images for which the device is prepared on this canvas; 0 if it is prepared for another one
    """
    runs, rest = divmod(ready, images)
    changes = (images != warm) + (rest > 0)
    return runs + (rest > 0) + RUNS_PER_CHANGE * changes
