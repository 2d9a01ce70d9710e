"""Two estimates from recent measurements: the time between answers, and the shortest time of a run.

The first predicts how long a new request would wait, so that a request that would wait too long is refused at once. The
second predicts whether a waiting task can be answered before its deadline, so that no engine works on it in vain. Both
estimates must fall again after a slow period, even if they have turned all work away.

All times are in seconds. The class is not thread-safe; the batcher's lock guards it.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

LEARNING_RATE = 0.1  # weight of the newest time between answers
RUN_GROWTH = 1.05  # the largest factor by which a slow run raises the estimate, which follows the fastest runs
ESTIMATE_DECAY = 0.8  # factor on the estimated run time for each image dropped because of it


class Pace:
    """Keeps both estimates.

    seconds_between_answers  average over the time in which images wait; 0 before the first measurement
    """

    def __init__(self) -> None:
        self.seconds_between_answers = 0.0
        self._last_answer: float | None = None
        self._fastest_runs: WeakKeyDictionary[object, dict[tuple[int, int], float]] = WeakKeyDictionary()

    def learn_answers(self, images: int, decode_began: float, now: float) -> None:
        """Learns from a batch of `images`, answered at `now`, whose decoding began at `decode_began`.

        The estimate is limited to the time from `decode_began` to `now`, which can be measured even if no other image
        waits. So an estimate that is too high is corrected, even though it turns away every request that would wait.
        """
        if self._last_answer is not None:
            spacing = (now - self._last_answer) / images
            rate = LEARNING_RATE if self.seconds_between_answers else 1
            self.seconds_between_answers += rate * (spacing - self.seconds_between_answers)
        self.seconds_between_answers = min(self.seconds_between_answers, now - decode_began)
        self._last_answer = now

    def forget_last_answer(self) -> None:
        """Must be called when no image waits, so that the idle time until the next answer is not counted."""
        self._last_answer = None

    def fastest_run(self, model: object, canvas: tuple[int, int]) -> float:
        """The time of the fastest recent run; 0 before the first run."""
        return self._fastest_runs.get(model, {}).get(canvas, 0.0)

    def shortest_run(self, model: object) -> float:
        """The time of the fastest recent run of the model on any canvas; 0 before the first run."""
        return min(self._fastest_runs.get(model, {}).values(), default=0.0)

    def learn_run(self, model: object, canvas: tuple[int, int], seconds: float) -> None:
        runs = self._fastest_runs.setdefault(model, {})
        runs[canvas] = min(seconds, RUN_GROWTH * runs.get(canvas, math.inf))

    def lower_run_estimate(self, model: object, canvas: tuple[int, int]) -> None:
        """Must be called for each image dropped because of the estimate, which else could stay too high for ever."""
        runs = self._fastest_runs.get(model, {})
        if canvas in runs:
            runs[canvas] *= ESTIMATE_DECAY
