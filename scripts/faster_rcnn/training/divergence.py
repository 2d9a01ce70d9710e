"""Noticing that a training has come apart, and saying what the likely cause is, before more time is lost."""

import math
from collections import deque

import torch
from torch import Tensor

WINDOW = 50  # iterations whose losses are averaged
# Times the lowest such average, which must be above the first one too: far beyond what hard batches or a new rate do,
# also where most images are empty and cost next to nothing.
RISE = 20.0

_LOWER_RATE = "go on from the last checkpoint with --resume and a lower --learning-rate"


class DivergenceWatch:
    """Follows a run's losses. Its `state` goes into the checkpoint."""

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
        """Raises FloatingPointError, which names the likely cause, if a loss is not finite or all have grown far."""
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
                f"{average / self.lowest:.0f} times what they were at best; likely the learning rate {rate:.2g} "
                f"is too high; {_LOWER_RATE}"
            )
        self.lowest = min(self.lowest, average)

    def check_gradient(self, iteration: int, rate: float, norm: Tensor) -> None:
        """Raises FloatingPointError if the gradients are not finite: a finite loss may have such."""
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"training has diverged at iteration {iteration} (gradients of norm {norm.item()}): "
                f"{self._cause(iteration, rate, [])}"
            )

    def _cause(self, iteration: int, rate: float, wrong: list[str]) -> str:
        if iteration == 0:
            return (
                "at the very first step it is not the rate: look for weights that are not finite or images with "
                "senseless boxes (scripts/check_data.py); then start again in a new --out"
            )
        if wrong and all(name.endswith("_box") for name in wrong):
            return (
                "only box regression is affected: likely objects of next to no size, which scripts/check_data.py "
                f"finds, else a learning rate ({rate:.2g}) that is too high; {_LOWER_RATE}"
            )
        if iteration < self.warm_up:
            return f"in the warm-up, likely the learning rate, {rate:.2g} by now, is too high; {_LOWER_RATE}"
        return f"likely the learning rate {rate:.2g} is too high; {_LOWER_RATE}"
