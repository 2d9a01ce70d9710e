"""What a data set is to the training and the evaluation."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    image: uint8 [H, W, 3], RGB, upright;  boxes: float32 [G, 4] as x1, y1, x2, y2 in its pixels;
    labels: int64 [G], indices into the data set's `labels`, from 0.
    crowd: bool [G], True where a box stands for many objects (COCO): not trained on, and what is detected in it is
    neither right nor wrong; None: no crowds.  areas: float [G], of the objects' outlines; None: of the boxes.
    difficult: bool [G], True where a person would hardly find the object (VOC): neither right nor wrong to detect;
    None: no such objects.  proposals: float32 [P, 4], regions given for this image, best first; None: none given.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    difficult: np.ndarray | None = None
    proposals: np.ndarray | None = None

    def counted(self, with_difficult: bool = False) -> np.ndarray:
        """bool [G]: which objects are to be found; not the crowds and, unless wanted, not the difficult ones."""
        counted = np.ones(len(self.labels), bool)
        if self.crowd is not None:
            counted &= ~self.crowd
        if self.difficult is not None and not with_difficult:
            counted &= ~self.difficult
        return counted

    def objects(self, with_difficult: bool = False) -> "Sample":
        """The sample with what is trained on: without its crowds and, unless wanted, its difficult objects."""
        wanted = self.counted(with_difficult)
        return Sample(self.image, self.boxes[wanted], self.labels[wanted], proposals=self.proposals)


@dataclass(frozen=True)
class Prediction:
    """What a detector says of a sample.  boxes: float32 [D, 4];  scores: float32 [D];  labels: int64 [D], from 0.

    proposals: float32 [P, 4], the regions that its head saw, best first; None where nobody asked for them.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    proposals: np.ndarray | None = None


class Dataset(Protocol):
    """A list of samples whose sizes are known without reading them."""

    labels: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        ...

    def name(self, index: int) -> str:
        """What tells an image from all others of the data set, the same in every run: its file's name, if any."""
        ...
