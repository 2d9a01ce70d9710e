"""The way of one batch through its device: prepared, run in the device's turn, its outputs read.

The thread holds the turn only while the session runs. So another thread of the device can prepare the next batch
meanwhile, and this one reads the outputs while the next batch runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from service.engine.devices import Device
from service.engine.engine import Engine, Result
from service.images.fit import Canvas


class DeviceRun:
    """Runs a batch, or parts of it after a failure. One thread uses it.

    waited   seconds for which the thread waited for the turn
    running  seconds for which the device ran
    """

    def __init__(
        self,
        device: Device,
        engine: Engine,
        proposals_only: bool,
        threads: int,
        clock: Callable[[], float],
        turn_began: Callable[[], None],
        turn_ended: Callable[[], None],
    ) -> None:
        """turn_began is called at the beginning of each turn, and turn_ended after the batch has run."""
        self._device, self._engine = device, engine
        self._proposals_only, self._threads = proposals_only, threads
        self._clock = clock
        self._turn_began, self._turn_ended = turn_began, turn_ended
        self.waited = self.running = 0.0

    def run(self, canvases: Sequence[Canvas]) -> list[Result]:
        """One result per canvas. Raises what the engine raises."""
        prepared = self._engine.prepare(canvases, self._proposals_only, self._threads)
        with self._turn():
            executed = self._engine.execute(prepared)
        self._turn_ended()
        return self._engine.results(executed)

    def run_again(self, canvases: Sequence[Canvas]) -> list[Result]:
        """The same for a part of a batch that failed; it never takes the memory of a larger one."""
        with self._turn():
            return self._engine.run(canvases, self._proposals_only, self._threads)

    def probe(self) -> None:
        """Runs a blank image. Raises what the engine raises."""
        with self._turn():
            self._engine.probe()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        asked = self._clock()
        with self._device.turn:
            self._turn_began()
            began = self._clock()
            self.waited += began - asked
            try:
                yield
            finally:
                self.running += self._clock() - began
