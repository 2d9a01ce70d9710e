"""Batches reach the training process through shared memory where there is enough, else through pipes."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from faster_rcnn.data import loader, worker_processes
from faster_rcnn.data.loader import Loading, training_batches
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.worker_processes import Way, choose_way
from faster_rcnn.detector.resize import ResizeRule

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes.sys, "platform", "linux")
    monkeypatch.setattr(worker_processes, "_locks_work", lambda: True)


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))


@pytest.mark.contract("6.9")
@pytest.mark.parametrize(
    ("free", "prefetch", "shared"),
    [
        # Two workers prepare p batches each and make one, and one is in use: 2 (p + 1) + 1 batches of 1 MB.
        (13_000_000, 4, True),  # 11 of 0.9 × 13 MB
        (11_000_000, 3, True),  # 9 of 9.9
        (6_000_000, 1, True),  # 5 of 5.4
        (5_000_000, 4, False),  # 5 of 4.5 do not fit
    ],
)
def test_fewer_batches_are_prepared_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch, free: int, prefetch: int, shared: bool
) -> None:
    with_free(monkeypatch, free)
    way = choose_way(2, 1_000_000)
    assert (way.workers, way.prefetch, way.shared) == (2, prefetch, shared)
    assert ("--shm-size" in way.remark) == (prefetch < 4 or not shared)  # said if it is not as asked for


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 13_000_000)
    assert choose_way(2, 1_000_000, processes=2).prefetch < 4


def test_without_shared_memory_the_process_prepares_the_images_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "_locks_work", lambda: False)
    way = choose_way(2, 1_000_000)
    assert way.workers == 0
    assert "/dev/shm cannot be written" in way.remark


def test_without_workers_nothing_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 0)
    assert choose_way(0, 1_000_000).remark == ""


def test_batches_are_the_same_through_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(way: Way) -> list[loader.Batch]:
        monkeypatch.setattr(loader, "choose_way", lambda *_: way)
        loading = Loading(2, 0, workers=1, augmentations=())
        every = training_batches(Shapes("train", 6), ResizeRule(64, 128), 16, loading)
        return [next(every) for _ in range(2)]

    for one, other in zip(batches(Way(1, 2, shared=True)), batches(Way(1, 2, shared=False)), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.sizes, other.sizes)
        assert replace(one, images=0, sizes=0, truth=[]) == replace(other, images=0, sizes=0, truth=[])  # type: ignore[arg-type]
        for mine, theirs in zip(one.truth, other.truth, strict=True):
            assert torch.equal(mine.boxes, theirs.boxes)
            assert torch.equal(mine.labels, theirs.labels)
