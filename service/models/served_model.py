"""A version that is served, and the count of the requests that use it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from service.engine.card import Card
from service.engine.devices import Device
from service.engine.engine import Engine
from service.images.fit import Geometry


@dataclass(eq=False)
class ServedModel:
    """A version that is served: an engine on every device, and a count of the requests that use it.

    Any thread may use it. Its lock guards the count, and the callback that is called when the count reaches 0 after
    `retire`.
    """

    card: Card
    geometry: Geometry
    engines: Mapping[Device, Engine]
    shapes_fault: str | None = None  # why its sessions have no fixed shapes although FIXED_SHAPES is on
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _in_flight: int = 0
    _retired: float = 0.0
    _drained: Callable[[float], object] | None = field(default=None, repr=False)

    @property
    def provider(self) -> str:
        return next(iter(self.engines.values())).provider

    @property
    def shapes(self) -> str:
        """Whether its sessions have fixed shapes on every device: fixed or dynamic."""
        return "fixed" if all(engine.fixes_shapes for engine in self.engines.values()) else "dynamic"

    def engine_on(self, device: Device) -> Engine:
        return self.engines[device]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts one request as using this version until the context ends."""
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            self._count_out(1)

    def retire(self, drained: Callable[[float], object]) -> None:
        """Must be called once, when no new request will use this version.

        `drained` is called once, after the last request has ended, with the seconds since this call.
        """
        with self._lock:
            self._retired, self._drained = time.monotonic(), drained
        self._count_out(0)

    def _count_out(self, requests: int) -> None:
        with self._lock:
            self._in_flight -= requests
            if self._in_flight or self._drained is None:
                return
            drained, self._drained = self._drained, None
            seconds = time.monotonic() - self._retired
        drained(seconds)
