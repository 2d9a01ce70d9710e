"""A table of the proposals for a whole data set. Every source produces this form, in memory and on disk.

On disk a table is one NumPy archive without pickles. Other tools can write it from three lists, one entry per image:
`names` (file names as the data set lists them), `boxes` (arrays [P, 4] of x1, y1, x2, y2 in pixels of the upright
original image, best first) and `scores` (arrays [P] in descending order):

    counts = np.array([len(one) for one in boxes], np.int64)
    everything = {"boxes": np.concatenate(boxes), "scores": np.concatenate(scores), "counts": counts}
    np.savez("table.npz", names=np.array(names), made=np.array("how they were made"), **everything)

P is the number of proposals of an image.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Sample
from faster_rcnn.files import write_file

LIMIT = 2000  # proposals per image that Fast R-CNN (section 4.7) and Faster R-CNN (section 3.3) train on
ARRAYS = ("names", "counts", "boxes", "scores", "made")


@dataclass(frozen=True)
class Regions:
    """The proposals of one image, best first.

    boxes: float32 [P, 4] as x1, y1, x2, y2 in pixels of the upright original;  scores: float32 [P], descending.
    """

    boxes: np.ndarray
    scores: np.ndarray

    def best(self, limit: int) -> "Regions":
        return Regions(self.boxes[:limit], self.scores[:limit])


def ranked(boxes: np.ndarray) -> Regions:
    """Regions from boxes [P, 4] without scores, best first; they get scores that fall evenly from 1 towards 0."""
    return Regions(boxes.astype(np.float32), np.linspace(1, 0, len(boxes), endpoint=False, dtype=np.float32))


class ProposalTable(Mapping[str, Regions]):
    """The regions of each image, by the name of the image. The text `made` describes how they were made.

    The constructor raises ValueError for invalid boxes or scores; the message names the image and the row.
    """

    def __init__(self, regions: Mapping[str, Regions], made: str) -> None:
        for name, one in regions.items():
            _check(name, one)
        self.regions = dict(regions)
        self.made = made

    def __getitem__(self, name: str) -> Regions:
        return self.regions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    def save(self, path: Path) -> None:
        """Writes the table whole or not at all, so that a crash or a full disk leaves a previous table intact."""
        every = list(self.regions.values())
        arrays = {
            "names": np.array(list(self.regions), np.str_),
            "counts": np.array([len(one.boxes) for one in every], np.int64),
            "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in every)]),
            "scores": np.concatenate([np.zeros(0, np.float32), *(one.scores for one in every)]),
            "made": np.array(self.made),
        }
        # NumPy's type stub mistakes the arrays for the argument allow_pickle
        needed = sum(array.nbytes for array in arrays.values())
        write_file(path, lambda file: np.savez(file, **arrays), needed)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "ProposalTable":
        """Reads a table.

        Raises FileNotFoundError if the file does not exist, ValueError if it is not a valid table.
        """
        try:
            return _table(_arrays(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def known(dataset: Dataset, table: Mapping[str, Regions]) -> list[str]:
    """The names of a data set's images, after a check that the table has all of them.

    Raises ValueError if the table is incomplete; the message gives the first missing image and the number of them.
    """
    names = [dataset.name(index) for index in range(len(dataset))]
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"the table of proposals has no entry for {missing[0]} ({len(missing)} of {len(names)} images are missing; "
            f"it has {len(table)}, the first is {next(iter(table), 'none')}); "
            "create one for this data set and split with faster-rcnn propose"
        )
    return names


class WithProposals:
    """A data set whose samples carry the best `limit` proposals of a table, clipped to their image.

    Boxes outside the image are left out. An image without regions gets an empty array of proposals.
    The constructor raises ValueError if the table lacks an image, or if all boxes of an image lie outside it.
    """

    def __init__(self, dataset: Dataset, table: Mapping[str, Regions], limit: int = LIMIT) -> None:
        names = known(dataset, table)
        self.labels = dataset.labels
        self._dataset = dataset
        self._boxes: list[np.ndarray] = []
        for index, name in enumerate(tqdm(names, desc="fitting proposals", unit="image", leave=False)):
            boxes = table[name].boxes
            fitting = _clip(boxes, dataset.size(index))[:limit]
            if len(boxes) and not len(fitting):
                height, width = dataset.size(index)
                raise ValueError(
                    f"the table of proposals has {len(boxes)} boxes for {name}, all outside its "
                    f"{width}×{height} pixels; write them as x1, y1, x2, y2 in pixels of the upright original"
                )
            self._boxes.append(fitting)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return replace(self._dataset[index], proposals=self._boxes[index])

    def size(self, index: int) -> tuple[int, int]:
        return self._dataset.size(index)

    def name(self, index: int) -> str:
        return self._dataset.name(index)


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    inside = boxes.clip(0, np.array([width, height, width, height], np.float32))
    return inside[(inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; faster-rcnn propose --out {path} writes one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS if name in archive}
    except Exception as error:  # a damaged archive can raise many types of error
        raise ValueError(f"not a NumPy archive (.npz) without pickles ({error}); write it with numpy.savez") from error
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ValueError(f"lacks {', '.join(missing)}; a table has the arrays {', '.join(ARRAYS)}")
    return arrays


def _table(arrays: dict[str, np.ndarray]) -> ProposalTable:
    names, counts, boxes, scores = (arrays[name] for name in ARRAYS[:4])
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"names is {names.dtype} {list(names.shape)}; it must be text [images]")
    if counts.shape != names.shape or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"counts is {counts.dtype} {list(counts.shape)}; write one count, 0 or more, for each name")
    rows = int(counts.sum())
    if boxes.shape != (rows, 4) or scores.shape != (rows,):
        raise ValueError(
            f"counts add up to {rows}, boxes are {list(boxes.shape)} and scores {list(scores.shape)}; "
            f"write [{rows}, 4] and [{rows}], or correct counts"
        )
    if boxes.dtype.kind not in "fiu" or scores.dtype.kind not in "fiu":
        raise ValueError(f"boxes are {boxes.dtype} and scores {scores.dtype}; write float32")
    listed = names.tolist()
    if len(set(listed)) < len(listed):
        twice = next(name for place, name in enumerate(listed) if name in listed[:place])
        raise ValueError(f"names has {twice} twice; keep one of them")
    ends = counts.cumsum()
    pieces = zip(
        listed,
        np.split(boxes.astype(np.float32, copy=False), ends[:-1]),
        np.split(scores.astype(np.float32, copy=False), ends[:-1]),
        strict=False,  # np.split returns one piece even if there are no names
    )
    return ProposalTable({name: Regions(some, ordered) for name, some, ordered in pieces}, str(arrays["made"]))


def _check(name: str, regions: Regions) -> None:
    boxes, scores = regions.boxes, regions.scores
    if boxes.dtype != np.float32 or scores.dtype != np.float32 or boxes.shape != (len(scores), 4):
        raise ValueError(
            f"{name}: boxes are {boxes.dtype} {list(boxes.shape)}, scores {scores.dtype} {list(scores.shape)}; "
            "give float32 [P, 4] and [P]"
        )
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    for sound, fault in (
        (finite, "and a value is not finite; remove the row"),
        (area, "but the box has no area; write x1, y1, x2, y2 with x2 > x1 and y2 > y1, or remove the row"),
        ((boxes[:, 2:] > 0).all(axis=1), "but the box is left of or above every image; remove the row"),
        (
            np.append(True, scores[1:] <= scores[:-1])[: len(scores)],
            "but the score is higher than the one before it; sort the rows by descending score",
        ),
    ):
        if not sound.all():
            row = int(np.flatnonzero(~sound)[0])
            raise ValueError(f"{name}: row {row} is {boxes[row].tolist()} with score {scores[row]}, {fault}")
