"""Selective Search (Uijlings et al. 2013) in its "fast" mode, as Fast R-CNN takes its proposals (section 4), by OpenCV.

What OpenCV leaves open:

Size. The number of regions and the time depend on the size of the image, hence R-CNN brings images to a width of
500 pixels first. Here a larger image is reduced to the area of 500×375 pixels: on 640×480 blood smears that took half
the time and found as many objects. Area instead of width, so that a long image does not lose its shorter side.

Order. The paper ranks regions by a random number times their place in the hierarchy, the whole image first. OpenCV
does so from the other end, the smallest pieces first, and draws from C's `rand`, so that no two calls agree (the set of
boxes is the same). The rule is applied anew: size stands for the place in the hierarchy, the generator has a seed.

Aspect. Images more than 2.4 times as long as wide made OpenCV throw until 4.1.1 (opencv_contrib#2102). It still turns
the image by 45°, so that time and memory grow with the square of the longer side: one of 1×100000 would take 20 GB.
Hence a side beyond LONGEST is squeezed to it, which leaves the shorter side, and with it small objects, as large as can
be; that happens to images of 12:1 and beyond only, most of which are strips.

P  regions of an image;  boxes are x1, y1, x2, y2 in pixels of the original image.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Indexed
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.proposal_sources.table import LIMIT, ProposalTable, ranked

AREA = 500 * 375  # pixels; R-CNN's width (Girshick et al. 2014, section 4.2) at an aspect of 4:3
LONGEST = 1500  # pixels
BASE_K, INCREMENT_K, SIGMA = 150, 150, 0.8  # OpenCV's defaults: k is 150, 300 and 450 in two colour spaces

# Everything that the boxes of an image depend on beside its pixels; the last number rises with this file's rules.
RECIPE = (
    f"selective-search fast; k {BASE_K}+{INCREMENT_K}; sigma {SIGMA}; area {AREA}; longest {LONGEST}; "
    f"OpenCV {cv2.__version__}; 1"
)


def selective_search(image: np.ndarray) -> np.ndarray:
    """The regions of an RGB image, uint8 [H, W, 3], without duplicates.  Returns float32 [P, 4], best first."""
    cv2.setNumThreads(1)  # the parallel work is in processes
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
    """The regions of the images of a data set, by `workers` processes.

    What has been computed is kept in the folder `cache` (None: `default_cache()`) image by image, so that a run
    that was cut off goes on where it was, and the same pixels are never searched twice.
    """
    indices = range(len(dataset))
    work = DataLoader(
        _Searches(dataset, cache or default_cache()),
        sampler=indices,
        batch_size=None,
        collate_fn=_unchanged,  # the default would make a tensor of it
        num_workers=workers if workers > 1 else 0,
        generator=torch.Generator(),  # the global one would lose a number, and what is drawn later differ
    )
    table = {}
    for index, boxes in zip(indices, tqdm(work, desc="selective search", unit="image"), strict=True):
        table[dataset.name(index)] = ranked(boxes[:limit])
    return ProposalTable(table, f"{RECIPE}; limit {limit}")


def default_cache() -> Path:
    """Where users keep what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faster-rcnn" / "selective-search"


def cached_search(image: np.ndarray, cache: Path) -> np.ndarray:
    """`selective_search`, from the cache if it knows the image.

    A file of the cache is named by the SHA-256 of the pixels, their shape and the recipe. One that is damaged is
    computed anew.
    """
    digest = hashlib.sha256(f"{RECIPE} {image.shape}\n".encode())
    digest.update(image.tobytes())
    file = cache / digest.hexdigest()[:2] / f"{digest.hexdigest()}.npy"
    if (found := _read(file, image.shape)) is not None:
        return found
    boxes = selective_search(image)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}.part")
    with aside.open("wb") as opened:
        np.save(opened, boxes)
    aside.replace(file)
    return boxes


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        boxes = np.load(file, allow_pickle=False)
    except Exception:  # a damaged file fails in many ways, and whatever it is, its boxes can be made again
        return None
    height, width = shape[:2]
    if not isinstance(boxes, np.ndarray) or boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        return None
    inside = (boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= [width, height])
    return boxes if len(boxes) and inside.all() else None


class _Searches(Indexed[np.ndarray]):
    """The regions of each image, for a DataLoader to have made by its processes."""

    def __init__(self, dataset: Dataset, cache: Path) -> None:
        self.dataset = dataset
        self.cache = cache

    def __getitem__(self, index: int) -> np.ndarray:
        return cached_search(self.dataset[index].image, self.cache)


def _unchanged(boxes: Any) -> Any:
    return boxes
