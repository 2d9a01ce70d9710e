"""Which models are served, now: the store is looked at again and again, and what is new takes over when it is warm.

Loading goes on in a thread, beside the versions that answer meanwhile. A new version then takes over between two
batches: what was asked before is answered by the version that it was asked of. What does not fit is refused with the
reason, and whatever was served goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service import store
from service.devices import Device
from service.engine import Engine
from service.images import Geometry
from service.metrics import Metrics
from service.store import Card, Refused

Signature = tuple[tuple[str, int, int, int], ...]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """A version that is served: an engine on every device. `in_flight` and `retired` tell when it has drained."""

    card: Card
    geometry: Geometry
    engines: Mapping[Device, Engine]
    in_flight: int = 0
    retired: float | None = None

    @property
    def provider(self) -> str:
        return next(iter(self.engines.values())).provider

    def engine_on(self, device: Device) -> Engine:
        return self.engines[device]


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

    def refresh(self) -> None:
        """Brings the catalogue to what the store holds. Raises Refused if there is no store."""
        found = {directory: signature(directory) for directory in store.directories(self._folder)}
        for directory in [known for known in self._known if known not in found]:
            self._remove(directory)
        for directory, seen in found.items():
            if self._known.get(directory) != seen:
                self._known[directory] = seen
                self._load(directory)
        self.default = store.default_name(self._folder)

    def _load(self, directory: Path) -> None:
        place, began = _place(directory), time.monotonic()
        try:
            served = self._open(directory)
        except Refused as error:
            log.warning("model %s is not served: %s", place, error)
            self.refused = self.refused | {place: str(error)}
            self._metrics.model_refused.labels(place).set(1)
            self._metrics.model_changes.labels("refused").inc()
            return
        took = time.monotonic() - began
        card = served.card
        old = self.models.get(card.name, {}).get(card.version)
        self.models = self.models | {card.name: self.models.get(card.name, {}) | {card.version: served}}
        self._accept(place)
        if old:
            self._retire(old)
        self._metrics.model.labels(card.name, str(card.version)).info(
            {"provider": served.provider, "sha256": card.sha256}
        )
        self._metrics.model_changes.labels("served").inc()
        self._metrics.model_load_seconds.observe(took)
        log.info("model %s is served after %.1f s", place, took)

    def _open(self, directory: Path) -> ServedModel:
        model = store.load(directory)
        engines = {}
        for device in self._devices:
            engine = Engine(model, device.provider, device.widths, self._tf32, device.index)
            try:
                engine.warm_up(device.budget.pixels)
            except Exception as error:
                log.exception("warming up %s", directory)
                raise Refused("it fails on a blank picture; the log has the reason") from error
            engines[device] = engine
        return ServedModel(model.card, model.card.geometry, engines)

    def _accept(self, place: str) -> None:
        if place in self.refused:
            self.refused = {other: reason for other, reason in self.refused.items() if other != place}
            self._metrics.model_refused.remove(place)

    def _remove(self, directory: Path) -> None:
        del self._known[directory]
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
            self._retire(served)
            log.info("model %s is not served any more: it has left the store", place)

    def _retire(self, served: ServedModel) -> None:
        served.retired = time.monotonic()
        if not served.in_flight:
            self._metrics.model_drain_seconds.observe(0)


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
