"""Chooses the served model that answers a request."""

from __future__ import annotations

from collections.abc import Mapping

from service.models.catalogue import ServedModel

Served = Mapping[str, Mapping[int, ServedModel]]  # by name and version


class UnknownModelError(Exception):
    """The request names a model or version that is not served. The message lists those that are available."""


class NoDefaultModelError(Exception):
    """The request names no model, and the service has no default. The message lists the models."""


def default_model(served: Served, configured: str | None, preferred: str | None) -> str | None:
    """The model for requests that name none: the `configured` one, else the only one, else the store's `preferred`."""
    if len(served) == 1 and not configured:
        return next(iter(served))
    chosen = configured or preferred
    return chosen if chosen in served else None


def choose(served: Served, default: str | None, name: str | None, version: int | None) -> ServedModel:
    """The model called `name` (else `default`) in this version (else the highest).

    Raises UnknownModelError or NoDefaultModelError.
    """
    available = ", ".join(served)
    name = name or default
    if name is None:
        raise NoDefaultModelError(f"There is no default model; choose one with ?model=. Available: {available}.")
    if name not in served:
        raise UnknownModelError(f"Unknown model. Available: {available}.")
    versions = served[name]
    version = max(versions) if version is None else version
    if version not in versions:
        listed = ", ".join(map(str, sorted(versions)))
        raise UnknownModelError(f"Unknown version of model {name}. Available: {listed}.")
    return versions[version]
