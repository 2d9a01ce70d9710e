"""Detects divergence early and names the likely cause."""

import math
from collections import deque

import torch
from torch import Tensor

WINDOW = 50  # iterations whose losses are averaged
# A run has diverged when the average exceeds both this many times the lowest average and the first average. Hard
# batches and a new learning rate stay far below that. The first average is a second bound because batches of mostly
# empty images bring the lowest average close to zero.
RISE = 20.0

_LOWER_RATE = "continue from the last checkpoint with --resume and a lower --learning-rate"


class DivergenceWatch:
    """Follows the losses of a training run. Its `state` is saved in the checkpoint."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.first: float | None = None
        self.lowest = math.inf

    @property
    def state(self) -> dict[str, object]:
        return {"recent": list(self.recent), "first": self.first, "lowest": self.lowest}

    @state.setter
    def state(self, state: dict[str, object]) -> None:
        self.recent = deque(state["recent"], maxlen=WINDOW)  # type: ignore[call-overload]
        self.first, self.lowest = state["first"], state["lowest"]  # type: ignore[assignment]

    def check_losses(self, iteration: int, rate: float, losses: dict[str, float]) -> None:
        """Raises FloatingPointError, which names the likely cause, if a loss is not finite or the sum has risen far."""
        values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        if wrong := [name for name, value in losses.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"training has diverged at iteration {iteration} ({values}): {self._cause(iteration, rate, wrong)}"
            )
        self.recent.append(sum(losses.values()))
        average = sum(self.recent) / len(self.recent)
        if len(self.recent) < WINDOW:
            return
        self.first = average if self.first is None else self.first
        if average > max(self.first, RISE * self.lowest):
            raise FloatingPointError(
                f"training has diverged by iteration {iteration}: the losses ({values}) are "
                f"{average / self.lowest:.0f} times their lowest average; the learning rate {rate:.2g} "
                f"is probably too high; {_LOWER_RATE}"
            )
        self.lowest = min(self.lowest, average)

    def check_gradient(self, iteration: int, rate: float, norm: Tensor) -> None:
        """Raises FloatingPointError if the gradient is not finite, which can happen although the loss is."""
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"training has diverged at iteration {iteration} (gradients of norm {norm.item()}): "
                f"{self._cause(iteration, rate, [])}"
            )

    def _cause(self, iteration: int, rate: float, wrong: list[str]) -> str:
        if iteration == 0:
            return (
                "at the first step the learning rate is not the cause; look for weights that are not finite, and for "
                "wrong boxes with faster-rcnn check; then start a new run with another --out"
            )
        if wrong and all(name.endswith("_box") for name in wrong):
            return (
                "only box regression is affected; probably some objects are tiny, which faster-rcnn check reports, or "
                f"the learning rate {rate:.2g} is too high; {_LOWER_RATE}"
            )
        if iteration < self.warm_up:
            return f"this is in the warm-up; the learning rate, {rate:.2g} so far, is probably too high; {_LOWER_RATE}"
        return f"the learning rate {rate:.2g} is probably too high; {_LOWER_RATE}"
