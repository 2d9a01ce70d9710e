"""How well the anchors of a configuration cover the objects of a data set, which limits what the RPN can learn.

All anchors whose IoU with an object is above 0.7 are positive. For an object without such an anchor, only the
best one is positive (Ren et al. 2015, section 3.1.2), and the RPN must move it a long way.
T  objects;  k  anchor shapes.  Boxes are x1, y1, x2, y2 in pixels of the resized image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.detector.anchor_shapes import anchor_sizes, scales_of_maps
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.resize import ResizeRule

SAMPLES = 200  # images drawn to examine a generated data set, whose objects are not known in advance
ENOUGH = 0.9  # share of a class's objects with an IoU above 0.5; if it is lower, other scales are suggested
MOST_RATIOS = 6  # ratios that are suggested at most; the cost of the RPN grows with their number
# Factors on the image size that are tried; the cost of inference grows with their square.
ENLARGEMENTS = (1.0, 1.5, 2.0)
AT_A_TIME = 20_000  # objects; a comparison with all anchor shapes needs about 1 kB for each
OCTAVES = 2.0 ** np.arange(3, 11)  # borders between the size groups of a report, 8 to 1024 pixels


@dataclass(frozen=True)
class Coverage:
    """How well the anchors of `config` cover the objects of a data set.

    best: float [T], IoU of each object with its best anchor;  classes: int64 [T];  sides: float [T], square roots of
    the objects' areas in the resized image;  never_inside: anchor shapes that do not fit into any image;
    suggestion: a configuration with other scales, and perhaps other ratios or larger images, that covers more; None if
    enough objects of every class are covered or nothing better was found;
    suggested: the shares of objects with an IoU above 0.5 under the suggestion: of all objects, and of the class that
    is covered worst.
    """

    config: DetectorConfig
    best: np.ndarray
    classes: np.ndarray
    sides: np.ndarray
    never_inside: tuple[str, ...]
    suggestion: DetectorConfig | None = None
    suggested: tuple[float, float] = (0.0, 0.0)

    def share(self, iou: float, where: np.ndarray | None = None) -> float:
        """The share of objects whose best IoU is above `iou`.  where: bool [T], the objects to include."""
        best = self.best if where is None else self.best[where]
        return float((best > iou).mean()) if len(best) else 0.0

    def worst_class(self) -> tuple[float, str]:
        """The class with the smallest share of IoUs above 0.5: share and name; ignores classes without objects."""
        shares = [(self.share(0.5, self.classes == label), label) for label in np.unique(self.classes).tolist()]
        share, label = min(shares, default=(0.0, 0))
        return share, self.config.labels[label]

    def report(self) -> str:
        """The coverage as a text table, followed by advice if it is poor."""
        rows = [("all", np.ones(len(self.best), bool)), *self._by_class(), *self._by_size()]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"{name:{width}} {mask.sum():8} {self.share(0.5, mask):7.1%} {self.share(0.7, mask):7.1%}"
            for name, mask in rows
            if mask.any()
        ]
        return "\n".join([f"{'anchors':{width}} {'objects':>8} {'IoU>0.5':>7} {'IoU>0.7':>7}", *lines, *self._advice()])

    def _by_class(self) -> Iterator[tuple[str, np.ndarray]]:
        for label, name in enumerate(self.config.labels):
            yield name, self.classes == label

    def _by_size(self) -> Iterator[tuple[str, np.ndarray]]:
        place = np.searchsorted(OCTAVES, self.sides, side="right")
        for octave in np.unique(place):
            low = f"{OCTAVES[octave - 1]:.0f}" if octave else "0"
            high = f" to {OCTAVES[octave]:.0f}" if octave < len(OCTAVES) else " and more"
            yield f"{low}{high} pixels", place == octave

    def _advice(self) -> Iterator[str]:
        if self.never_inside:
            shapes = f"{len(self.never_inside)} of {len(_shape_names(self.config))} ({', '.join(self.never_inside)})"
            effect = (
                "they are trained even though they cross the border"
                if self.config.anchor_sampling.keep_crossing
                else "warning: anchors that cross the border are dropped, so these are never trained; "
                "keep them with --crossing-anchors keep, or choose smaller --anchor-scales"
            )
            yield f"anchor shapes that do not fit into any image: {shapes}; {effect}"
        if self.suggestion:
            share, name = self.worst_class()
            all_objects, worst = self.suggested
            yield (
                f"warning: only {share:.1%} of the objects of class {name} have an anchor with IoU above 0.5; "
                f"{_options(self.suggestion, self.config)} "
                f"would cover at least {worst:.1%} of each class and {all_objects:.1%} of all objects"
            )


def _options(suggestion: DetectorConfig, config: DetectorConfig) -> str:
    """The options of the commands that turn `config` into `suggestion`."""
    options = []
    if suggestion.anchor_scales != config.anchor_scales:
        options += ["--anchor-scales", *(f"{scale:g}" for scale in suggestion.anchor_scales)]
    if suggestion.anchor_ratios != config.anchor_ratios:
        options += ["--anchor-ratios", *(f"{ratio:g}" for ratio in suggestion.anchor_ratios)]
    if (resize := suggestion.resize) != config.resize:
        options += ["--min-size", str(resize.min_size), "--max-size", str(resize.max_size)]
    return " ".join(options)


def anchor_coverage(dataset: Dataset, config: DetectorConfig, strides: Sequence[int]) -> Coverage:
    """Measures how well `config` covers a data set's objects, and suggests a better one if the coverage is poor.

    strides: those of the backbone's feature maps, finest first; each map gets an equal number of scales, in order.
    """
    objects = _objects(dataset)
    coverage = _coverage(objects, config, strides)
    if len(coverage.best) == 0:
        return coverage
    best = coverage
    for candidate in _candidates(coverage, _ratios(objects), len(strides)):
        if best.worst_class()[0] >= ENOUGH:
            break
        # `max` returns the first of equals, which changes less.
        best = max(best, _coverage(objects, candidate, strides), key=lambda one: one.worst_class()[0])
    if best is coverage:
        return coverage
    return replace(coverage, suggestion=best.config, suggested=(best.share(0.5), best.worst_class()[0]))


def _candidates(coverage: Coverage, ratios: np.ndarray, maps: int) -> Iterator[DetectorConfig]:
    """Configurations to try, the cheapest first.

    ratios: [T], height / width of each object in the resized image;  maps: the number of feature maps.
    Objects much smaller than the stride fall between the anchors at any scale. Only larger images help then.
    """
    config, count = coverage.config, None if maps == 1 else len(coverage.config.anchor_scales)
    both = dict.fromkeys((config.anchor_ratios, suggest_ratios(ratios, coverage.classes)))
    for enlargement in ENLARGEMENTS:
        resize = ResizeRule(round(config.resize.min_size * enlargement), round(config.resize.max_size * enlargement))
        scales = suggest_scales(coverage.sides * enlargement, coverage.classes, count)
        for anchor_ratios in both:
            yield replace(config, anchor_scales=scales, anchor_ratios=anchor_ratios, resize=resize)


def _ratios(objects: "_Objects") -> np.ndarray:
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    ratios: np.ndarray = height / width  # the resize keeps them
    return ratios


def _coverage(objects: "_Objects", config: DetectorConfig, strides: Sequence[int]) -> Coverage:
    new_sizes = np.array([config.resize(*size) for size in objects.sizes.tolist()]).reshape(-1, 2)
    factors = (new_sizes / objects.sizes)[objects.image]
    boxes = objects.boxes * factors[:, [1, 0, 1, 0]]
    best = best_overlaps(boxes, new_sizes[objects.image], config, strides)
    inside = inside_somewhere(new_sizes, config, strides)
    never = tuple(name for name, there in zip(_shape_names(config), inside, strict=True) if not there)
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return Coverage(config, best, objects.classes, sides, never)


def suggest_scales(sides: np.ndarray, classes: np.ndarray, count: int | None) -> tuple[float, ...]:
    """Anchor scales from the smallest to the largest objects, ignoring 5 % of each class at either end.

    sides: float [T], square roots of the objects' areas;  classes: int64 [T];  count: number of scales; None chooses
    the smallest number that puts them at most an octave apart. An octave suffices: an anchor of the same shape and
    centre as an object, but half or twice its area, has an IoU of 0.5 with it.
    """
    ends = [np.quantile(sides[classes == label], [0.05, 0.95]) for label in np.unique(classes)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    steps = count or max(1, math.ceil(math.log2(high / low)))
    return tuple(float(max(1, round(low * (high / low) ** ((step + 0.5) / steps)))) for step in range(steps))


def suggest_ratios(ratios: np.ndarray, classes: np.ndarray) -> tuple[float, ...]:
    """Anchor ratios from the widest to the tallest objects, ignoring 5 % of each class at either end.

    ratios: float [T], height / width of the objects;  classes: int64 [T].  They are at most an octave apart: an anchor
    with the area and centre of an object, and twice its ratio, has an IoU of 0.547 with it. At most MOST_RATIOS.
    """
    logs = np.log2(ratios)
    ends = [np.quantile(logs[classes == label], [0.05, 0.95]) for label in np.unique(classes)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    steps = min(MOST_RATIOS, max(1, math.ceil(high - low - 1e-9)))
    chosen = [2.0 ** (low + (high - low) * (step + 0.5) / steps) for step in range(steps)]
    return tuple(float(f"{ratio:.2g}") for ratio in chosen)


class _Objects(NamedTuple):
    """All objects of a data set.

    boxes [T, 4] in pixels of the original images;  classes [T];  image [T], the index of each object's image;
    sizes [N, 2], height and width of each image.
    """

    boxes: np.ndarray
    classes: np.ndarray
    image: np.ndarray
    sizes: np.ndarray


def _objects(dataset: Dataset) -> _Objects:
    if isinstance(dataset, FolderDataset):
        count = len(dataset)
        boxes, classes, image = dataset.every_object()
    else:
        count = min(len(dataset), SAMPLES)
        samples = [dataset[index].objects() for index in range(count)]
        boxes = np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in samples)])
        classes = np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in samples)])
        image = np.repeat(np.arange(count), [len(sample.labels) for sample in samples])
    sizes = np.array([dataset.size(index) for index in range(count)]).reshape(-1, 2)
    return _Objects(boxes.astype(np.float64), classes, image, sizes)


def _shape_names(config: DetectorConfig) -> list[str]:
    return [f"{scale:g} at ratio {ratio:g}" for ratio in config.anchor_ratios for scale in config.anchor_scales]


def _shapes(config: DetectorConfig, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Width and height [k, 2] of every anchor shape, and the stride [k] of its feature map.

    Raises ValueError if the scales cannot be divided evenly among the maps.
    """
    sizes = anchor_sizes(config.anchor_scales, config.anchor_ratios).astype(np.float64)
    scales_per_map = [len(scales) for scales in scales_of_maps(config, len(strides))]
    stride_of_scale = np.repeat(np.array(strides, np.float64), scales_per_map)
    return sizes, np.tile(stride_of_scale, len(config.anchor_ratios))


def _cells(
    length: np.ndarray, extent: np.ndarray, strides: np.ndarray, keep_crossing: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The first and last cell along one side of the image whose anchor is used: [T, k] each.

    length: [T], the images' sides;  extent: [k], the anchors' sides.  The last precedes the first if no cell is used.
    """
    last = np.ceil(length[:, None] / strides) - 1
    if keep_crossing:
        return np.zeros_like(last), last
    first = np.ceil(extent / 2 / strides - 0.5)
    return np.broadcast_to(first, last.shape), np.minimum(
        last, np.floor((length[:, None] - extent / 2) / strides - 0.5)
    )


def inside_somewhere(sizes: np.ndarray, config: DetectorConfig, strides: Sequence[int]) -> np.ndarray:
    """Marks the anchor shapes that fit into at least one image.  sizes: [N, 2], height and width.  Returns bool [k]."""
    shapes, shape_strides = _shapes(config, strides)
    unique = np.unique(sizes, axis=0).astype(np.float64)
    inside = np.ones((len(unique), len(shapes)), bool)
    for axis in (0, 1):
        first, last = _cells(unique[:, 1 - axis], shapes[:, axis], shape_strides, keep_crossing=False)
        inside &= first <= last
    return np.asarray(inside.any(axis=0))


def best_overlaps(boxes: np.ndarray, sizes: np.ndarray, config: DetectorConfig, strides: Sequence[int]) -> np.ndarray:
    """IoU of each box with the best of the anchors that `config` trains.

    boxes: [T, 4];  sizes: [T, 2], height and width of their images.  Returns [T]; 0 where no anchor is used.

    Among the anchors of one shape, the one whose centre is nearest along both axes overlaps a box most, because an
    overlap never grows as the centres move apart. So each box is compared with k anchors instead of those of all
    locations.
    """
    best = [np.zeros(0)]
    for first in range(0, len(boxes), AT_A_TIME):
        part = slice(first, first + AT_A_TIME)
        best.append(_best_overlaps(boxes[part], sizes[part], config, strides))
    return np.concatenate(best)


def _best_overlaps(boxes: np.ndarray, sizes: np.ndarray, config: DetectorConfig, strides: Sequence[int]) -> np.ndarray:
    shapes, shape_strides = _shapes(config, strides)
    overlap = np.ones((len(boxes), len(shapes)))
    for axis in (0, 1):
        low, high, extent = boxes[:, None, axis], boxes[:, None, axis + 2], shapes[:, axis]
        length = sizes[:, 1 - axis].astype(np.float64)
        first, last = _cells(length, extent, shape_strides, config.anchor_sampling.keep_crossing)
        cell = np.clip(np.round((low + high) / 2 / shape_strides - 0.5), first, last)
        centre = (cell + 0.5) * shape_strides
        shared = np.minimum(high, centre + extent / 2) - np.maximum(low, centre - extent / 2)
        overlap *= np.where(first <= last, shared.clip(0), 0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = area[:, None] + shapes.prod(axis=1) - overlap
    best: np.ndarray = (overlap / union).max(axis=1)
    return best
