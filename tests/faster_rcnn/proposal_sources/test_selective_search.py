"""Selective Search: its regions and their order, images of any size, and the cache."""

import multiprocessing
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from torchvision.ops import box_iou

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.subset import Subset
from faster_rcnn.proposal_sources import selective_search as module
from faster_rcnn.proposal_sources.selective_search import (
    AREA,
    cached_search,
    default_cache,
    selective_search,
    selective_search_table,
)


def plain(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A red image with a green rectangle."""
    image = np.full((height, width, 3), (200, 30, 30), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = (20, 200, 60)
    return image


def best_overlap(boxes: np.ndarray, box: tuple[int, ...]) -> float:
    return float(box_iou(torch.tensor([box], dtype=torch.float32), torch.from_numpy(boxes)).max())


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    return np.ascontiguousarray(Shapes("val")[1].image[:150, :200])


class Cuts:
    """Small cuts of `shapes` images, on which Selective Search is fast."""

    labels = Shapes.labels

    def __init__(self, length: int = 5) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        image = np.ascontiguousarray(Shapes("val")[index].image[:90, :120])
        return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def size(self, index: int) -> tuple[int, int]:
        height, width = Shapes("val").size(index)
        return min(height, 90), min(width, 120)

    def name(self, index: int) -> str:
        return f"cut {index}"


def test_the_boxes_equal_those_of_opencv(small: np.ndarray) -> None:
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(small[:, :, ::-1].copy())
    search.switchToSelectiveSearchFast()
    opencv = {(x, y, x + width, y + height) for x, y, width, height in search.process().tolist()}
    boxes = selective_search(small)
    assert {tuple(one) for one in boxes.tolist()} == opencv
    assert len(boxes) == len(opencv)
    assert boxes.dtype == np.float32


def test_the_order_is_the_same_each_time(small: np.ndarray) -> None:
    np.testing.assert_array_equal(selective_search(small), selective_search(small))


def test_large_regions_tend_to_come_first(small: np.ndarray) -> None:
    boxes = selective_search(small)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    half = len(areas) // 2
    assert np.median(areas[:half]) > np.median(areas[half:])


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (60, 600, (200, 15, 230, 45)),  # 10:1
        (600, 60, (20, 150, 40, 450)),
        (300, 731, (243, 75, 393, 225)),  # the widest aspect ratio that OpenCV accepted before 4.1.1
        (300, 732, (244, 75, 394, 225)),  # the first that OpenCV did not accept
        (60, 3000, (1000, 15, 1060, 45)),  # 50:1, squeezed to 60 × 1500
    ],
)
def test_a_rectangle_is_found_in_an_image_of_any_aspect_ratio(height: int, width: int, box: tuple[int, ...]) -> None:
    boxes = selective_search(plain(height, width, box))  # type: ignore[arg-type]
    assert best_overlap(boxes, box) > 0.95
    assert (boxes[:, 2:] <= [width, height]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 500), (3, 3)])
def test_the_whole_image_is_a_region_even_if_the_image_is_tiny(size: tuple[int, int]) -> None:
    height, width = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for image in (noise, np.zeros_like(noise)):
        boxes = selective_search(image)
        assert [0, 0, width, height] in boxes.tolist()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_very_long_image_is_searched() -> None:
    # OpenCV would rotate it by 45°, into a square with sides of 70711 pixels
    noise = np.random.default_rng(0).integers(0, 256, (1, 100_000, 3), dtype=np.uint8)
    boxes = selective_search(noise)
    assert len(boxes) > 1
    assert (boxes[:, 2:] <= [100_000, 1]).all()
    assert boxes[:, 2].max() == 100_000


def test_a_grey_image_is_searched_by_its_brightness() -> None:
    grey = np.repeat(plain(100, 120, (30, 20, 70, 60)).mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert best_overlap(selective_search(grey), (30, 20, 70, 60)) > 0.95


def test_a_large_image_is_reduced_and_its_boxes_are_in_original_pixels() -> None:
    box = (400, 300, 1000, 900)
    image = plain(1200, 1600, box)
    assert image.shape[0] * image.shape[1] > AREA
    boxes = selective_search(image)
    assert best_overlap(boxes, box) > 0.95
    assert [0, 0, 1600, 1200] in boxes.tolist()


@pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")
def test_the_regions_of_a_photograph_cover_most_blood_cells() -> None:
    dataset = open_dataset(f"voc:{os.environ['REAL_DATA_DIR']}/bccd", "val", skip_bad_boxes=True)
    sample = dataset[0]
    overlaps = box_iou(torch.from_numpy(sample.boxes), torch.from_numpy(selective_search(sample.image)))
    assert len(sample.boxes) > 5
    assert (overlaps.max(dim=1).values >= 0.5).float().mean() > 0.6


def test_the_same_pixels_are_searched_once(small: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_search(small, tmp_path)
    assert [file.suffix for file in tmp_path.rglob("*") if file.is_file()] == [".npy"]

    def fail(image: np.ndarray) -> np.ndarray:
        raise AssertionError("searched again")

    with monkeypatch.context() as patched:
        patched.setattr(module, "selective_search", fail)
        np.testing.assert_array_equal(cached_search(small.copy(), tmp_path), first, strict=True)
        changed = small.copy()
        changed[0, 0, 0] ^= 1
        for other in (changed, small.reshape(small.shape[1], small.shape[0], 3)):  # the same bytes in another shape
            with pytest.raises(AssertionError, match="searched again"):
                cached_search(other, tmp_path)
        patched.setattr(module, "RECIPE", "another recipe")
        with pytest.raises(AssertionError, match="searched again"):
            cached_search(small, tmp_path)


def test_a_damaged_cache_file_is_replaced(small: np.ndarray, tmp_path: Path) -> None:
    right = cached_search(small, tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    whole = file.read_bytes()
    for content in (b"", whole[:40], whole[:-7], b"PK\3\4 not an archive", whole.replace(b"<f4", b"<f8")):
        file.write_bytes(content)
        np.testing.assert_array_equal(cached_search(small, tmp_path), right, strict=True)
        assert file.read_bytes() == whole
    for boxes in (right[:0], right[:, :3], np.full((3, 4), np.nan, np.float32), right + 1000):
        np.save(file, boxes)
        np.testing.assert_array_equal(cached_search(small, tmp_path), right, strict=True)


def test_several_processes_compute_the_same_table_as_one(tmp_path: Path) -> None:
    alone = selective_search_table(Cuts(), limit=50, cache=tmp_path / "alone")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    together = selective_search_table(Cuts(), limit=50, cache=tmp_path / "together", workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(together) == list(alone) == [f"cut {index}" for index in range(5)]
    for name in alone:
        assert len(alone[name].boxes) <= 50
        np.testing.assert_array_equal(together[name].boxes, alone[name].boxes)
        assert (np.diff(together[name].scores) < 0).all()
    files = {file.name: file.read_bytes() for file in (tmp_path / "alone").rglob("*.npy")}
    assert {file.name: file.read_bytes() for file in (tmp_path / "together").rglob("*.npy")} == files


def search_and_be_killed(cache: Path) -> None:
    """Starts to search 300 images, and kills the process and its workers with SIGKILL when six are done."""
    parent = psutil.Process()
    real_search = module.selective_search

    def killing(image: np.ndarray) -> np.ndarray:
        if len(list(cache.rglob("*.npy"))) >= 6:
            for each in [parent, *parent.children()]:  # this worker is among them
                each.kill()
        return real_search(image)

    module.selective_search = killing
    selective_search_table(Cuts(300), cache=cache, workers=2)


def test_a_killed_search_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = multiprocessing.get_context("fork").Process(target=search_and_be_killed, args=(tmp_path,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    done = {file.name for file in tmp_path.rglob("*.npy")}
    assert 6 <= len(done) < 300
    searched = []
    plain_search = module.selective_search

    def counted(image: np.ndarray) -> np.ndarray:
        searched.append(image.shape)
        return plain_search(image)

    monkeypatch.setattr(module, "selective_search", counted)
    images = len(done) + 3
    table = selective_search_table(Subset(Cuts(300), images), cache=tmp_path)
    fresh = selective_search_table(Cuts(3), cache=tmp_path / "fresh")
    assert len(table) == images
    # Three images are new. Up to two more may be missing, because the workers may have been out of step.
    assert 3 <= len(searched) - 3 <= 5
    for name in fresh:
        np.testing.assert_array_equal(table[name].boxes, fresh[name].boxes)


def test_the_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "faster-rcnn" / "selective-search"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "faster-rcnn" / "selective-search"
