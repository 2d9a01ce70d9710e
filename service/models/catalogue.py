"""The served models: scans the store, loads and warms up new versions, then switches to them.

New versions are loaded in a thread while the current ones continue to answer. A request that was admitted before the
switch is answered by the version that was current then. A version that cannot be served is refused with a reason and
does not affect the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from service.engine.devices import Device
from service.engine.model import ModelRefusedError, ModelUnreadableError
from service.engine.options import EngineOptions
from service.models.attempts import Attempts, is_incomplete, place_of
from service.models.choice import Choices
from service.models.opening import NotEnoughMemoryError, Opener, may_pass, shortage
from service.models.refusals import RefusalLog, RefusalMetrics
from service.models.served_model import ServedModel
from service.models.store import (
    Listing,
    ModelPlace,
    StoreMissingError,
    UnusableFileError,
    directories,
    read_default,
    read_pin,
    signature,
)
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Catalogue:
    """The models of the store `folder`, served on `devices`.

    choices  what requests can choose from
    trying   whether a version that is not served may be served later without a change of its files

    Only one thread at a time may call `refresh`. It replaces `choices` and never modifies it, so other threads may read
    it at any time without a lock.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[Device],
        options: EngineOptions,
        metrics: Metrics,
        default: ModelPlace | None = None,
        clock: Callable[[], float] = time.monotonic,
        opener: Opener | None = None,
    ) -> None:
        """`default`: the setting, which overrides the store's file."""
        self.choices = Choices(default=default)
        self._folder = folder
        self._setting = default
        self._opener = opener or Opener(devices, options)
        self._metrics = metrics
        self._clock = clock
        self._attempts: dict[Path, Attempts] = {}
        self._listing = Listing([], [], [])
        self._pin_known: set[str] = set()  # the models whose pin, or its absence, was read
        self._faults: dict[str, str] = {}  # of the files `default`, as they were last reported
        self._refused: dict[str, str] = {}
        self._arriving: dict[str, str] = {}
        self._refusal_log = RefusalLog()
        self._refusal_metrics = RefusalMetrics(metrics)

    @property
    def models(self) -> dict[str, dict[int, ServedModel]]:
        return {name: dict(versions) for name, versions in self.choices.served.items()}

    @property
    def trying(self) -> bool:
        waiting = (attempts.missing or attempts.failures for attempts in self._attempts.values())
        return any(waiting) or bool(self._unlisted())

    def refresh(self) -> None:
        """Loads new and changed versions, and removes those that have left the store.

        Raises StoreMissingError, and OSError if the store cannot be listed now. What is served then stays as it is.
        """
        listing = directories(self._folder)
        if not listing.names and self.choices.served:
            raise StoreMissingError("the model store is empty; mount its volume, or publish a model")
        self._warn_of(listing)
        self._refusal_log.begin()
        self._read_choices(listing, loaded=False)
        for directory in listing.versions:
            attempts = self._attempts.setdefault(directory, Attempts())
            if attempts.due(signature(directory), self._clock()):
                self._load(directory, attempts)
            if attempts.missing:
                self._wait_for(directory, attempts)
        self._read_choices(listing, loaded=True)
        # Versions are removed last, so that their replacements are already served and chosen.
        found = set(listing.versions)
        unknown = set(listing.unreadable)
        for directory in [known for known in self._attempts if known not in found and known.parent not in unknown]:
            self._remove(directory)
        self._publish()
        self._refusal_log.end()
        self._refusal_metrics.show(self.choices.refused, len(self.choices.arriving))

    def _publish(self, served: Mapping[str, Mapping[int, ServedModel]] | None = None) -> None:
        """Lets requests see what is served, refused and arriving now."""
        unlisted = dict.fromkeys(self._unlisted(), "its folder cannot be listed; correct its permissions")
        self.choices = replace(
            self.choices,
            served=self.choices.served if served is None else served,
            refused={**self._refused, **unlisted},
            arriving=dict(self._arriving),
        )

    # --- the default and the pins ------------------------------------------------------------------------------------

    def _read_choices(self, listing: Listing, loaded: bool) -> None:
        """Reads which model and versions are chosen by default.

        A change to what is served already takes effect before new versions are `loaded`, so that none of them answers
        in spite of a pin. Any other change takes effect afterwards, so that the version that it names is served.
        """
        if not self._setting:
            self._choose_default(listing, loaded)
        self._pin_known.intersection_update(listing.names)
        # A model that has just left the store is still served, so it keeps its pin until it is removed.
        kept = {name: pin for name, pin in self.choices.pins.items() if name in self.choices.served}
        pins = kept | {name: self._pin(name, listing, loaded) for name in listing.names}
        self.choices = replace(self.choices, pins={name: pin for name, pin in pins.items() if pin is not None})

    def _choose_default(self, listing: Listing, loaded: bool) -> None:
        """The store's file, else the default so far, else the only model in the store."""
        kept = self.choices.default
        try:
            named = read_default(self._folder)
        except UnusableFileError as error:
            self._report(
                "default", str(error), f"{kept} stays the default" if kept else "requests that name no model get 503"
            )
            self.choices = replace(self.choices, default_fault=None if kept else str(error))
            return
        self._faults.pop("default", None)
        if named is None and kept is None and len(listing.names) == 1:
            named = ModelPlace(listing.names[0])
        if named and named != kept and self._may_choose(named, listing, loaded):
            log.info("%s is the default model", named)
            self.choices = replace(self.choices, default=named, default_fault=None)

    def _pin(self, name: str, listing: Listing, loaded: bool) -> int | str | None:
        kept = self.choices.pins.get(name)
        try:
            pin = read_pin(self._folder / name)
        except UnusableFileError as error:
            if name not in self._pin_known:
                self._report(f"{name}/default", str(error), "requests must choose with ?version=")
                return str(error)
            stays = "the highest version still answers" if kept is None else f"version {kept} stays pinned"
            self._report(f"{name}/default", str(error), stays)
            return kept
        self._faults.pop(f"{name}/default", None)
        self._pin_known.add(name)
        if pin == kept or not (pin is None or self._may_choose(ModelPlace(name, pin), listing, loaded)):
            return kept
        log.info("model %s: %s", name, "the highest version answers" if pin is None else f"version {pin} is pinned")
        return pin

    def _may_choose(self, place: ModelPlace, listing: Listing, loaded: bool) -> bool:
        """Whether a choice takes effect now. One that was published after the scan waits for the next scan."""
        name, version = place
        versions = self.choices.served.get(name, {})
        if versions if version is None else version in versions:
            return True
        folder = self._folder / str(place)
        listed = name in listing.names if version is None else folder in listing.versions
        return loaded and (listed or not _exists(folder))

    def _report(self, file: str, fault: str, effect: str) -> None:
        if self._faults.get(file) != fault:
            log.warning("the file %s in the model store cannot be used (%s); %s", file, fault, effect)
        self._faults[file] = fault

    def _warn_of(self, listing: Listing) -> None:
        if listing.unreadable != self._listing.unreadable:
            for folder in listing.unreadable:
                log.warning("%s cannot be listed; its versions are still served, but new ones are not found", folder)
        self._listing = listing

    def _unlisted(self) -> list[str]:
        """The models whose folders cannot be listed."""
        return [folder.name for folder in self._listing.unreadable if folder.name in self._listing.names]

    # --- versions ----------------------------------------------------------------------------------------------------

    def _load(self, directory: Path, attempts: Attempts) -> None:
        place, began = place_of(directory), self._clock()
        attempts.missing = None
        try:
            served = self._opener.open(directory, self._served)
        except Exception as error:
            self._failed(place, attempts, error)
            return
        attempts.failures = 0
        self._accept(place)
        if served is not self._served(served.card.name, served.card.version):
            self._serve(place, served, self._clock() - began)

    def _served(self, name: str, version: int) -> ServedModel | None:
        return self.choices.served.get(name, {}).get(version)

    def _is_served(self, place: str) -> bool:
        return any(
            f"{name}/{version}" == place for name, versions in self.choices.served.items() for version in versions
        )

    def _serve(self, place: str, served: ServedModel, seconds: float) -> None:
        card, models = served.card, self.choices.served
        old = self._served(card.name, card.version)
        versions = dict(sorted({**models.get(card.name, {}), card.version: served}.items()))
        self._publish(dict(sorted({**models, card.name: versions}.items())))
        if old:
            old.retire(self._metrics.model_drain_seconds.observe)
        self._metrics.model.labels(card.name, str(card.version)).info(
            {"provider": served.provider, "sha256": card.sha256, "shapes": served.shapes}
        )
        self._metrics.model_changes.labels("served").inc()
        self._metrics.model_load_seconds.observe(seconds)
        log.info("model %s is served; loading took %.1f s", place, seconds)

    def _failed(self, place: str, attempts: Attempts, error: Exception) -> None:
        if is_incomplete(error):
            assert isinstance(error, ModelRefusedError)
            attempts.missing = error
        elif isinstance(error, ModelUnreadableError) or may_pass(error):
            attempts.failed_for_now(self._clock())
            known = isinstance(error, ModelUnreadableError | NotEnoughMemoryError)
            lacking = str(error) if known else f"it cannot be loaded now ({shortage(error)}), but is tried again"
            self._refuse(place, lacking, None if known else error)
        elif isinstance(error, ModelRefusedError):
            self._refuse(place, str(error))
        else:
            attempts.failed_for_now(self._clock())
            reason = f"it cannot be loaded and run ({type(error).__name__}); the log has the reason"
            self._refuse(place, reason, error)

    def _wait_for(self, directory: Path, attempts: Attempts) -> None:
        """Reports an incomplete version as arriving, or refuses it if its files have not changed for a while."""
        place = place_of(directory)
        if attempts.missing and attempts.is_stalled(self._clock()):
            reason, attempts.missing = str(attempts.missing), None
            self._refuse(place, reason)
            return
        if place not in self._arriving:
            log.info("model %s is still arriving, %d bytes so far", place, attempts.bytes())
        self._refused.pop(place, None)
        self._arriving[place] = f"it is still arriving, {attempts.bytes()} bytes so far"

    def _refuse(self, place: str, reason: str, error: Exception | None = None) -> None:
        if self._is_served(place):
            reason = f"{reason}; it still answers as it was when it was loaded"
        if self._refused.get(place) != reason:
            self._refusal_log.add(place, reason, error)
            self._metrics.model_changes.labels("refused").inc()
        self._arriving.pop(place, None)
        self._refused[place] = reason

    def _accept(self, place: str) -> None:
        """Forgets why a version was not served."""
        self._refused.pop(place, None)
        self._arriving.pop(place, None)

    def _remove(self, directory: Path) -> None:
        del self._attempts[directory]
        place = place_of(directory)
        self._accept(place)
        name, version = directory.parent.name, directory.name
        models = self.choices.served
        versions = {number: served for number, served in models.get(name, {}).items() if str(number) != version}
        gone = [served for number, served in models.get(name, {}).items() if number not in versions]
        others = {other: served for other, served in models.items() if other != name}
        if gone:
            self._publish({**others, name: versions} if versions else others)
        for served in gone:
            self._metrics.model.remove(name, version)
            self._metrics.model_changes.labels("removed").inc()
            served.retire(self._metrics.model_drain_seconds.observe)
            log.info("model %s is no longer served, because it was removed from the store", place)


def _exists(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:
        return True
