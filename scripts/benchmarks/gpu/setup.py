"""What all checks share: the provider, the models, and how large the checks are.

On the CPU the same checks are a rehearsal: the models and the numbers of repetitions are small, and only what does not
depend on a GPU is judged.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from service.engine.model import Model, load_model
from service.engine.providers import CPU

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "model_store/shapes/1/example.jpg"
LARGE, TINY = "fasterrcnn_resnet50_fpn_v2", "tiny"  # the torchvision model, and its small stand-in
EMBEDDED = (ROOT / "model_store/shapes/1", ROOT / "model_store/bccd/1")


@dataclass(frozen=True)
class Setup:
    """provider: that runs the models;  models: folder with a version of the torchvision model, see `subjects.py`."""

    provider: str
    models: Path

    @property
    def rehearsal(self) -> bool:
        return self.provider == CPU

    @property
    def torchvision(self) -> Path:
        """The version of the torchvision model."""
        return self.models / (TINY if self.rehearsal else LARGE) / "1"

    @property
    def small(self) -> Path:
        """The smallest model."""
        return self.torchvision if self.rehearsal else EMBEDDED[0]

    def load(self, folder: Path) -> Model:
        return load_model(folder)

    def times(self, on_gpu: int, in_rehearsal: int) -> int:
        """How often something is repeated."""
        return in_rehearsal if self.rehearsal else on_gpu


class Clock:
    """Counts down the seconds that a check may take."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._ends - time.monotonic())

    def over(self) -> bool:
        return self.left() == 0.0
