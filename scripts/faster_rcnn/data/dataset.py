"""The interface of data sets, and the records that training and evaluation exchange with them.

G  objects;  D  detections;  P  proposals.  Boxes are x1, y1, x2, y2 in pixels of the upright image.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    image: uint8 [H, W, 3], RGB, upright;  boxes: float32 [G, 4];  labels: int64 [G], indices into the data set's
    `labels`, from 0.
    crowd: bool [G], True where a box stands for many objects (COCO): it is not trained on, and detections in it count
    neither as true nor as false positives; None: no crowds.
    areas: float [G], areas of the objects' outlines; None: use the boxes' areas.
    difficult: bool [G], True where even a person has difficulty seeing the object (VOC): detecting it counts neither as
    a true nor as a false positive; None: no such objects.
    proposals: float32 [P, 4], proposals supplied with the data set, best first; None: it has none.
    file: the bytes of the image's file, from which predictors decode exactly what the service would; None: they use
    `image`.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    difficult: np.ndarray | None = None
    proposals: np.ndarray | None = None
    file: bytes | None = None

    def counted(self, with_difficult: bool = False) -> np.ndarray:
        """Marks the objects that a detector should find, bool [G]: no crowds and, by default, no difficult objects."""
        counted = np.ones(len(self.labels), bool)
        if self.crowd is not None:
            counted &= ~self.crowd
        if self.difficult is not None and not with_difficult:
            counted &= ~self.difficult
        return counted

    def objects(self, with_difficult: bool = False) -> "Sample":
        """The sample without the objects that are not trained on: crowds and, by default, difficult objects."""
        wanted = self.counted(with_difficult)
        return Sample(self.image, self.boxes[wanted], self.labels[wanted], proposals=self.proposals)


@dataclass(frozen=True)
class Prediction:
    """The detections in one image.  boxes: float32 [D, 4];  scores: float32 [D];  labels: int64 [D], from 0.

    proposals: float32 [P, 4], the proposals that the RoI head classified, best first; None if they were not requested.
    left_out: no detection with a higher score was left out because of the detector's limits on their number.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    proposals: np.ndarray | None = None
    left_out: float = 0.0


class Dataset(Protocol):
    """A sequence of samples. Their sizes and names are known without reading the images."""

    labels: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright image."""
        ...

    def name(self, index: int) -> str:
        """A name that is unique in the data set and the same in every run: the file's name, if there is a file."""
        ...
