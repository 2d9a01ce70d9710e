"""Estimates from what happened lately: the time between answers, and the shortest time that a run takes.

The first says how long a new request would wait, so that one that would wait too long is refused at once. The second
says which waiting task cannot be answered before its deadline, so that no engine works on it. Both estimates must come
down again after a slow time even if they keep all work away.

All times are in seconds. Nothing here is safe for threads by itself; the batcher's lock guards it.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

LEARNING_RATE = 0.1  # weight of the newest time between answers
RUN_GROWTH = 1.05  # most that a slow run raises the estimate, which follows the fastest runs
ESTIMATE_DECAY = 0.8  # factor on the estimated run time for each image dropped because of it


class Pace:
    """The estimates.

    seconds_between_answers  average over the time in which images wait; 0 before anything is known
    """

    def __init__(self) -> None:
        self.seconds_between_answers = 0.0
        self._last_answer: float | None = None
        self._fastest_runs: WeakKeyDictionary[object, dict[tuple[int, int], float]] = WeakKeyDictionary()

    def learn_answers(self, images: int, decode_began: float, now: float) -> None:
        """Learns from a batch of `images` answered at `now`, the first of which began to be decoded at `decode_began`.

        The estimate is never longer than the time from `decode_began` to `now`. That time is known even if no
        other image waits, so a too-high estimate is corrected although it turns away every request that would wait.
        """
        if self._last_answer is not None:
            spacing = (now - self._last_answer) / images
            rate = LEARNING_RATE if self.seconds_between_answers else 1
            self.seconds_between_answers += rate * (spacing - self.seconds_between_answers)
        self.seconds_between_answers = min(self.seconds_between_answers, now - decode_began)
        self._last_answer = now

    def forget_last_answer(self) -> None:
        """To be called when no image waits, so that the idle time until the next answer is not counted."""
        self._last_answer = None

    def fastest_run(self, model: object, canvas: tuple[int, int]) -> float:
        """Time of the fastest recent run; 0 before the first."""
        return self._fastest_runs.get(model, {}).get(canvas, 0.0)

    def learn_run(self, model: object, canvas: tuple[int, int], seconds: float) -> None:
        runs = self._fastest_runs.setdefault(model, {})
        runs[canvas] = min(seconds, RUN_GROWTH * runs.get(canvas, math.inf))

    def lower_run_estimate(self, model: object, canvas: tuple[int, int]) -> None:
        """For each image dropped because of the estimate; one that is too high would otherwise never be corrected."""
        runs = self._fastest_runs.get(model, {})
        if canvas in runs:
            runs[canvas] *= ESTIMATE_DECAY
