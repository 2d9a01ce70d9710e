"""Chooses the served model that answers a request: the one that was asked for, or an error (contract 4.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from service.models.refusals import MOST_LISTED, first
from service.models.served_model import ServedModel
from service.models.store import ModelPlace


class UnknownModelError(Exception):
    """The request names a model or version that is not served. The message lists those that are available."""


class NoDefaultModelError(Exception):
    """The request names no model, and the service has no default. The message lists the models."""


class NotServedError(Exception):
    """The default model, or the version to which a model is pinned, is not served now. The message says why.

    No other model or version answers in its place.
    """

    def __init__(self, reason: Literal["default_model", "pinned_version"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Choices:
    """What a request can choose from, at one moment. Nothing in it is modified, so any thread may read it.

    served         the served models, by name and version
    default        the model for requests that name none, whether or not it is served
    default_fault  why the store's file `default` cannot be used, if no default was in effect before
    pins           by name, the version for requests that name none, or why the file with its number cannot be used
    refused        the reason for each version that is not served, by "name/version"
    arriving       the state of each version that is still being copied, by "name/version"
    """

    served: Mapping[str, Mapping[int, ServedModel]] = field(default_factory=dict)
    default: ModelPlace | None = None
    default_fault: str | None = None
    pins: Mapping[str, int | str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    arriving: Mapping[str, str] = field(default_factory=dict)

    def choose(self, name: str | None, version: int | None) -> ServedModel:
        """The model called `name` (else the default) in this version (else the pinned one, else the highest).

        Raises UnknownModelError, NoDefaultModelError or NotServedError.
        """
        if name is None:
            return self._default(version)
        place = ModelPlace(name, version)
        if version is not None and version not in self.served.get(name, {}) and (why := self._reason(place)):
            raise UnknownModelError(f"Model {place} is not served: {why}. Available: {_listed(self.served)}.")
        if name not in self.served:
            raise UnknownModelError(f"Unknown model. Available: {_listed(self.served)}.")
        versions = self.served[name]
        version = self._usual_version(name) if version is None else version
        if version not in versions:
            raise UnknownModelError(f"Unknown version of model {name}. Available: {_listed(sorted(versions))}.")
        return versions[version]

    def default_missing(self) -> NotServedError | None:
        """Why requests that name no model cannot be answered although there should be a default; else None."""
        try:
            self._default(None)
        except NotServedError as error:
            return error
        except NoDefaultModelError:
            pass
        return None

    def why_nothing_is_served(self) -> str:
        """Why each of the first versions is not served, on one line; empty if the store has no version."""
        reasons = {**self.refused, **self.arriving}
        listed = first(reasons)
        more = f"; and {len(reasons) - len(listed)} more" if len(reasons) > len(listed) else ""
        return "; ".join(f"{place}: {reasons[place]}" for place in listed) + more

    def _default(self, version: int | None) -> ServedModel:
        if self.default_fault:
            raise NotServedError(
                "default_model",
                f"The file `default` in the model store cannot be used: {self.default_fault}. "
                f"Correct it, or choose a model with ?model=. Available: {_listed(self.served)}.",
            )
        if self.default is None:
            raise NoDefaultModelError(
                f"There is no default model; choose one with ?model=. Available: {_listed(self.served)}."
            )
        name, wanted = self.default
        if name not in self.served or (version is None and wanted is not None and wanted not in self.served[name]):
            raise NotServedError(
                "default_model",
                f"The default model {self.default} is not served: {self._why(self.default)}. Until it is, choose "
                f"another with ?model=. Available: {_listed(self.served)}.",
            )
        return self.choose(name, wanted if version is None else version)

    def _usual_version(self, name: str) -> int:
        pin = self.pins.get(name)
        if pin is None:
            return max(self.served[name])
        available = _listed(sorted(self.served[name]))
        if isinstance(pin, str):
            message = f"The file `{name}/default` in the model store cannot be used: {pin}. Correct it, or choose a "
            raise NotServedError("pinned_version", f"{message}version with ?version=. Available: {available}.")
        if pin not in self.served[name]:
            place = ModelPlace(name, pin)
            message = f"Model {name} is pinned to version {pin}, which is not served: {self._why(place)}. "
            raise NotServedError("pinned_version", f"{message}Choose with ?version=. Available: {available}.")
        return pin

    def _reason(self, place: ModelPlace) -> str | None:
        return self.refused.get(str(place)) or self.arriving.get(str(place))

    def _why(self, place: ModelPlace) -> str:
        """Why a model or version is not served."""
        if reason := self._reason(place):
            return reason
        reasons = {**self.refused, **self.arriving}
        of_its_versions = [each for each in reasons if place.version is None and each.startswith(f"{place.name}/")]
        if not of_its_versions:
            return "it is not in the model store"
        newest = max(of_its_versions, key=lambda each: (len(each), each))
        return f"{newest}: {reasons[newest]}"


def _listed(each: Iterable[object]) -> str:
    words = [str(word) for word in each]
    more = f" and {len(words) - MOST_LISTED} more" if len(words) > MOST_LISTED else ""
    return (", ".join(words[:MOST_LISTED]) + more) or "none"
