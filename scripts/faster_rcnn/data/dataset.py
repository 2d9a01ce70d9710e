"""What a data set is to the training and the evaluation."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One picture and its objects.

    image: uint8 [H, W, 3], RGB, upright;  boxes: float32 [G, 4] as x1, y1, x2, y2 in its pixels;
    labels: int64 [G], indices into the data set's `labels`, from 0.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class Dataset(Protocol):
    """A list of samples whose sizes are known without reading them."""

    labels: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture."""
        ...
