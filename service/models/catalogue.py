"""Which models are served, now: the store is looked at again and again, and what is new takes over when it is warm.

Loading goes on in a thread, beside the versions that answer meanwhile. A new version then takes over between two
batches: what was asked before is answered by the version that it was asked of. What does not fit is refused with the
reason, and whatever was served goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.engine.devices import Device
from service.engine.engine import Engine
from service.engine.model import Card, Refused, load_model
from service.images.fit import Geometry
from service.models.store import default_name, directories
from service.telemetry.metrics import Metrics

RETRY_SECONDS = 60.0

Signature = tuple[tuple[str, int, int, int], ...]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """A version that is served: an engine on every device."""

    card: Card
    geometry: Geometry
    engines: Mapping[Device, Engine]
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _in_flight: int = 0
    _retired: float = 0.0
    _drained: Callable[[float], object] | None = field(default=None, repr=False)

    @property
    def provider(self) -> str:
        return next(iter(self.engines.values())).provider

    def engine_on(self, device: Device) -> Engine:
        return self.engines[device]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """One request, for as long as the context lasts."""
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            self._count_out(1)

    def retire(self, drained: Callable[[float], object]) -> None:
        """Nobody new asks for it. `drained` is told once, with the seconds that the last who had asked took."""
        with self._lock:
            self._retired, self._drained = time.monotonic(), drained
        self._count_out(0)

    def _count_out(self, requests: int) -> None:
        with self._lock:
            self._in_flight -= requests
            if self._in_flight or self._drained is None:
                return
            drained, self._drained = self._drained, None
        drained(time.monotonic() - self._retired)


class Catalogue:
    """The models of a store, as `devices` serve them.

    models   name to version to model; replaced as a whole, so the event loop may read it while a thread refreshes
    refused  "name/version" to the reason
    default  the name that the store prefers for requests that name none
    """

    def __init__(self, folder: Path, devices: Sequence[Device], tf32: bool, metrics: Metrics) -> None:
        self.models: dict[str, dict[int, ServedModel]] = {}
        self.refused: dict[str, str] = {}
        self.default: str | None = None
        self._folder = folder
        self._devices = devices
        self._tf32 = tf32
        self._metrics = metrics
        self._known: dict[Path, Signature] = {}
        self._unreadable: list[Path] = []
        self._default_unread = False
        self._again: dict[Path, float] = {}  # when to try what failed for reasons that may pass

    def refresh(self) -> None:
        """Brings the catalogue to what the store holds. Raises Refused if there is no store."""
        listing = directories(self._folder)
        self._tell(listing.unreadable)
        found = {directory: signature(directory) for directory in listing.versions}
        for directory, seen in found.items():
            due = time.monotonic() >= self._again.get(directory, math.inf)
            if self._known.get(directory) != seen or due:
                self._known[directory] = seen
                self._again.pop(directory, None)
                self._load(directory)
        # what has gone goes last, so that what takes its place is there first
        gone = [known for known in self._known if known not in found and known.parent not in listing.unreadable]
        for directory in gone:
            self._remove(directory)
        self._refresh_default()

    def _refresh_default(self) -> None:
        try:
            self.default = default_name(self._folder)
            self._default_unread = False
        except (OSError, UnicodeDecodeError) as error:
            if not self._default_unread:
                log.warning("%s/default cannot be read (%s); it counts as before", self._folder, type(error).__name__)
            self._default_unread = True

    def _tell(self, unreadable: list[Path]) -> None:
        if unreadable != self._unreadable:
            for folder in unreadable:
                log.warning("%s cannot be listed; what is served from it stays, nothing new is found there", folder)
            self._unreadable = unreadable

    def _load(self, directory: Path) -> None:
        place, began = _place(directory), time.monotonic()
        try:
            served = self._open(directory)
        except Refused as error:
            self._refuse(place, str(error))
            return
        except Exception as error:  # for want of memory, say: it may go better later
            log.exception("loading %s", directory)
            self._again[directory] = time.monotonic() + RETRY_SECONDS
            self._refuse(place, f"it cannot be loaded and run now ({type(error).__name__}); the log has the reason")
            return
        took = time.monotonic() - began
        card = served.card
        old = self.models.get(card.name, {}).get(card.version)
        self.models = self.models | {card.name: self.models.get(card.name, {}) | {card.version: served}}
        self._accept(place)
        if old:
            old.retire(self._metrics.model_drain_seconds.observe)
        self._metrics.model.labels(card.name, str(card.version)).info(
            {"provider": served.provider, "sha256": card.sha256}
        )
        self._metrics.model_changes.labels("served").inc()
        self._metrics.model_load_seconds.observe(took)
        log.info("model %s is served after %.1f s", place, took)

    def _open(self, directory: Path) -> ServedModel:
        model = load_model(directory)
        engines = {}
        for device in self._devices:
            engines[device] = Engine(model, device.provider, device.widths, self._tf32, device.index)
            engines[device].warm_up(device.budget.pixels)
        return ServedModel(model.card, model.card.geometry, engines)

    def _refuse(self, place: str, reason: str) -> None:
        log.warning("model %s is not served: %s", place, reason)
        self.refused = self.refused | {place: reason}
        self._metrics.model_refused.labels(place).set(1)
        self._metrics.model_changes.labels("refused").inc()

    def _accept(self, place: str) -> None:
        if place in self.refused:
            self.refused = {other: reason for other, reason in self.refused.items() if other != place}
            self._metrics.model_refused.remove(place)

    def _remove(self, directory: Path) -> None:
        del self._known[directory]
        self._again.pop(directory, None)
        place = _place(directory)
        self._accept(place)
        name, version = directory.parent.name, directory.name
        versions = {number: served for number, served in self.models.get(name, {}).items() if str(number) != version}
        gone = [served for number, served in self.models.get(name, {}).items() if number not in versions]
        others = {other: served for other, served in self.models.items() if other != name}
        self.models = others | ({name: versions} if versions else {})
        for served in gone:
            self._metrics.model.remove(name, version)
            self._metrics.model_changes.labels("removed").inc()
            served.retire(self._metrics.model_drain_seconds.observe)
            log.info("model %s is not served any more: it has left the store", place)


def signature(directory: Path) -> Signature:
    """What changes when a version's files do; a file that is missing has no part in it."""
    parts = []
    for name in ("model.json", "model.onnx"):
        try:
            stat = (directory / name).stat()
        except OSError:
            continue
        parts.append((name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(parts)


def _place(directory: Path) -> str:
    return f"{directory.parent.name}/{directory.name}"
