"""Selective Search (Uijlings et al. 2013) in its "fast" mode, computed by OpenCV.

Fast R-CNN (section 4) trains on these proposals. Three things differ from the papers and from OpenCV:

Size. The number of regions and the time depend on the size of the image, so R-CNN first resizes images to a width of
500 pixels. Here an image with more pixels than 500×375 is reduced to that area. On blood smears of 640×480 pixels this
took half the time and found the same number of objects. The limit applies to the area instead of the width, so that the
shorter side of a long image is not reduced too much.

Order. The paper ranks regions by a random number times their position in the hierarchy, counted from the whole image.
OpenCV counts from the smallest regions and uses C's `rand`, so the order differs between calls, although the set of
boxes is the same. This module applies the paper's rule to OpenCV's boxes, with a fixed seed. A box's rank by size, the
largest first, stands in for its position in the hierarchy.

Aspect ratio. Until version 4.1.1 OpenCV failed on images more than 2.4 times as long as wide (opencv_contrib#2102). It
still rotates the image by 45°, so time and memory grow with the square of the longer side: 1×100000 pixels would take
20 GB. Therefore a side above LONGEST is shortened to it. The shorter side, and with it small objects, keeps its size.
This affects only images whose aspect ratio is 12:1 or more.

P is the number of regions of an image. Boxes are x1, y1, x2, y2 in pixels of the original image.
"""

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.worker_processes import leave_signals_to_the_parent
from faster_rcnn.files import write_file
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, ranked
from faster_rcnn.user_cache import user_cache

AREA = 500 * 375  # pixels; R-CNN's width (Girshick et al. 2014, section 4.2) at an aspect ratio of 4:3
LONGEST = 1500  # pixels
BASE_K, INCREMENT_K, SIGMA = 150, 150, 0.8  # OpenCV's defaults: k is 150, 300 and 450 in two colour spaces

# Everything besides the pixels that determines the boxes of an image. Raise the last number when a rule here changes.
RECIPE = (
    f"selective-search fast; k {BASE_K}+{INCREMENT_K}; sigma {SIGMA}; area {AREA}; longest {LONGEST}; "
    f"OpenCV {cv2.__version__}; 1"
)


def selective_search(image: np.ndarray) -> np.ndarray:
    """The regions of an RGB image, without duplicates.

    image: uint8 [H, W, 3].  Returns float32 [P, 4], best first.
    """
    cv2.setNumThreads(1)  # `selective_search_table` works in parallel processes
    height, width = image.shape[:2]
    scale = min(1.0, (AREA / (height * width)) ** 0.5)
    small = [min(max(1, round(side * scale)), LONGEST) for side in (width, height)]
    bgr = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), small, interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(bgr)
    search.switchToSelectiveSearchFast(BASE_K, INCREMENT_K, SIGMA)
    left, top, sides_x, sides_y = np.unique(search.process(), axis=0).T
    corners = np.stack([left, top, left + sides_x, top + sides_y], axis=1)
    boxes = corners * np.array([width / small[0], height / small[1]] * 2)
    return _prioritised(boxes).astype(np.float32)


def _prioritised(boxes: np.ndarray) -> np.ndarray:
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    by_size = boxes[np.argsort(-areas, kind="stable")]
    draws = np.random.default_rng(0).random(len(boxes))
    return by_size[np.argsort(draws * np.arange(1, len(boxes) + 1), kind="stable")]


def selective_search_table(
    dataset: Dataset, limit: int = LIMIT, cache: Path | None = None, workers: int = 1
) -> ProposalTable:
    """The regions of the images of a data set, computed by `workers` processes.

    The regions of each image are kept in the folder `cache` (None: `default_cache()`), so that an interrupted search
    can resume and the same pixels are never searched twice.
    """
    indices = range(len(dataset))
    work = DataLoader(
        _Searches(dataset, cache if cache is not None else _usable_default_cache()),
        sampler=indices,
        batch_size=None,
        collate_fn=_unchanged,  # the default would convert arrays to tensors
        num_workers=workers if workers > 1 else 0,  # arrays pass through pipes, so /dev/shm may be small
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator(),  # using the global generator would change later random numbers
    )
    table = {}
    for index, boxes in zip(indices, tqdm(work, desc="selective search", unit="image"), strict=True):
        table[dataset.name(index)] = ranked(boxes[:limit])
    return ProposalTable(table, f"{RECIPE}; limit {limit}")


def _usable_default_cache() -> Path | None:
    """The default cache, or None, with a warning, if it cannot be written: the search works without it."""
    cache = default_cache()
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache):
                return cache
    except OSError:
        pass
    print(
        "warning: the cache in the home folder cannot be written, so an interrupted search would begin again; "
        "set XDG_CACHE_HOME to a folder that can be written"
    )
    return None


def default_cache() -> Path | None:
    """Where the results are kept; None for a user without a home folder."""
    cache = user_cache()
    return None if cache is None else cache / "selective-search"


def cached_search(image: np.ndarray, cache: Path) -> np.ndarray:
    """The result of `selective_search`, read from the cache if the image was searched before.

    A cache file is named by the SHA-256 of the pixels, their shape and RECIPE. A damaged file is replaced.
    """
    digest = hashlib.sha256(f"{RECIPE} {image.shape}\n".encode())
    digest.update(image.tobytes())
    file = cache / digest.hexdigest()[:2] / f"{digest.hexdigest()}.npy"
    if (found := _read(file, image.shape)) is not None:
        return found
    boxes = selective_search(image)
    with contextlib.suppress(FileExistsError):  # another process may create it at the same time
        file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, lambda opened: np.save(opened, boxes), boxes.nbytes)
    return boxes


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        boxes = np.load(file, allow_pickle=False)
    except Exception:  # a damaged file can raise many types of error; its boxes can always be recomputed
        return None
    height, width = shape[:2]
    if not isinstance(boxes, np.ndarray) or boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        return None
    inside = (boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= [width, height])
    return boxes if len(boxes) and inside.all() else None


class _Searches(Indexed[np.ndarray]):
    """The regions of each image, computed by the worker processes of a DataLoader."""

    def __init__(self, dataset: Dataset, cache: Path | None) -> None:
        self.dataset = dataset
        self.cache = cache

    def __getitem__(self, index: int) -> np.ndarray:
        image = self.dataset[index].image
        return selective_search(image) if self.cache is None else cached_search(image, self.cache)


def _unchanged(boxes: Any) -> Any:
    return boxes
