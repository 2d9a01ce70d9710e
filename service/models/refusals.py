"""Bounds what is said about refused versions, however many there are: in the log, the metrics and the answers."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable

from service.telemetry.metrics import Metrics

MOST_LISTED = 20  # refused versions that one answer, the metrics, or the log of one scan of the store names

log = logging.getLogger("service.models.catalogue")


def first(places: Iterable[str]) -> list[str]:
    """The first of `places` that are listed one by one, by name and number of version."""
    return heapq.nsmallest(MOST_LISTED, places, key=_order)


def _order(place: str) -> tuple[str, int, str]:
    name, _, version = place.partition("/")
    return name, int(version) if version.isdecimal() and len(version) <= 16 else -1, version


class RefusalLog:
    """The log lines about the versions that one scan refuses."""

    def __init__(self) -> None:
        self._logged = 0

    def begin(self) -> None:
        self._logged = 0

    def add(self, place: str, reason: str, error: Exception | None = None) -> None:
        """`error`: its traceback is logged too."""
        self._logged += 1
        if self._logged <= MOST_LISTED:
            log.warning("model %s is refused: %s", place, reason, exc_info=error)

    def end(self) -> None:
        if self._logged > MOST_LISTED:
            more = self._logged - MOST_LISTED
            log.warning("%d more versions are refused; GET /models/{name}?version= gives the reason for each", more)


class RefusalMetrics:
    """One series for each of the first refused versions, and the number of all."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: set[str] = set()

    def show(self, refused: Iterable[str], arriving: int) -> None:
        places = list(refused)
        shown = set(first(places))
        for place in self._shown - shown:
            self._metrics.model_refused.remove(place)
        for place in shown - self._shown:
            self._metrics.model_refused.labels(place).set(1)
        self._shown = shown
        self._metrics.refused_versions.set(len(places))
        self._metrics.arriving_versions.set(arriving)
