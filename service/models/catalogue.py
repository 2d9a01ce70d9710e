"""The served models: scans the store, loads and warms up new versions, then switches to them.

New versions are loaded in a thread while the current ones continue to answer. A request that was admitted before the
switch is answered by the version that was current then. A version that cannot be served is refused with a reason and
does not affect the others.
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
from service.engine.model import Card, ModelRefusedError, load_model
from service.images.fit import Geometry
from service.models.store import default_name, directories
from service.telemetry.metrics import Metrics

RETRY_SECONDS = 60.0

Signature = tuple[tuple[str, int, int, int], ...]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """A version that is served: an engine on every device, and a count of the requests that use it.

    Any thread may use it. Its lock guards the count, and the callback that is called when the count reaches 0 after
    `retire`.
    """

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


class Catalogue:
    """The models of the store `folder`, served on `devices`.

    models   the served models, by name and version
    refused  the reason for each version that is not served, by "name/version"
    default  the name of the store's default model, for requests that name no model

    Only one thread at a time may call `refresh`. It replaces these three attributes and never modifies a dictionary in
    place, so other threads may read them at any time without a lock.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[Device],
        tf32: bool,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models: dict[str, dict[int, ServedModel]] = {}
        self.refused: dict[str, str] = {}
        self.default: str | None = None
        self._folder = folder
        self._devices = devices
        self._tf32 = tf32
        self._metrics = metrics
        self._clock = clock
        self._known: dict[Path, Signature] = {}
        self._unreadable: list[Path] = []
        self._default_unread = False
        self._retry_at: dict[Path, float] = {}  # for versions that failed for a reason that may be temporary

    def refresh(self) -> None:
        """Loads new and changed versions, and removes those that have left the store. Raises StoreMissingError."""
        listing = directories(self._folder)
        self._warn_of(listing.unreadable)
        found = {directory: signature(directory) for directory in listing.versions}
        for directory, seen in found.items():
            due = self._clock() >= self._retry_at.get(directory, math.inf)
            if self._known.get(directory) != seen or due:
                self._known[directory] = seen
                self._retry_at.pop(directory, None)
                self._load(directory)
        # remove versions last, so that their replacements are already served
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
                log.warning(
                    "%s/default cannot be read (%s); the previous default stays in effect",
                    self._folder,
                    type(error).__name__,
                )
            self._default_unread = True

    def _warn_of(self, unreadable: list[Path]) -> None:
        if unreadable != self._unreadable:
            for folder in unreadable:
                log.warning("%s cannot be listed; its versions are still served, but new ones are not found", folder)
            self._unreadable = unreadable

    def _load(self, directory: Path) -> None:
        place, began = _place(directory), self._clock()
        try:
            served = self._open(directory)
        except ModelRefusedError as error:
            self._refuse(place, str(error))
            return
        except Exception as error:  # for example too little memory, which may be free later
            log.exception("loading %s failed", directory)
            self._retry_at[directory] = self._clock() + RETRY_SECONDS
            self._refuse(place, f"it cannot be loaded and run now ({type(error).__name__}); the log has the reason")
            return
        seconds = self._clock() - began
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
        self._metrics.model_load_seconds.observe(seconds)
        log.info("model %s is served; loading took %.1f s", place, seconds)

    def _open(self, directory: Path) -> ServedModel:
        model = load_model(directory)
        engines = {}
        for device in self._devices:
            engines[device] = Engine(model, device.provider, device.thread_counts, self._tf32, device.index)
            engines[device].warm_up(device.budget.pixels, device.runs)
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
        self._retry_at.pop(directory, None)
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
            log.info("model %s is no longer served, because it was removed from the store", place)


def signature(directory: Path) -> Signature:
    """A value that changes when the files of a version change. Missing files are left out."""
    files = []
    for name in ("model.json", "model.onnx"):
        try:
            stat = (directory / name).stat()
        except OSError:
            continue
        files.append((name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(files)


def _place(directory: Path) -> str:
    return f"{directory.parent.name}/{directory.name}"
