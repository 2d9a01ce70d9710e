"""What a data set is to the training and the evaluation."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One picture and its objects.

    image: uint8 [H, W, 3], RGB, upright;  boxes: float32 [G, 4] as x1, y1, x2, y2 in its pixels;
    labels: int64 [G], indices into the data set's `labels`, from 0.
    crowd: bool [G], True where a box stands for many objects (COCO): not trained on, and what is detected in it is
    neither right nor wrong; None: no crowds.  areas: float [G], of the objects' outlines; None: of the boxes.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None

    def objects(self) -> "Sample":
        """The sample without its crowds."""
        if self.crowd is None:
            return self
        single = ~self.crowd
        return Sample(self.image, self.boxes[single], self.labels[single])


@dataclass(frozen=True)
class Prediction:
    """What a detector says of a sample.  boxes: float32 [D, 4];  scores: float32 [D];  labels: int64 [D], from 0."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Dataset(Protocol):
    """A list of samples whose sizes are known without reading them."""

    labels: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture."""
        ...
