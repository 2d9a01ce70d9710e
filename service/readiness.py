"""Whether the service can answer requests now, and which of its models answers each of them."""

from __future__ import annotations

import logging
import time
from typing import Literal

from service.models import choice
from service.models.catalogue import Catalogue, ServedModel

log = logging.getLogger(__name__)


class NotReadyError(Exception):
    """The service cannot answer now. `failure` explains the reason "failed"."""

    def __init__(self, reason: Literal["draining", "failed", "loading", "no_model"], failure: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.failure = failure


class Readiness:
    """The state of the service as requests and `/readyz` see it. Only the event loop changes it.

    catalogue       None until the models are loaded
    failure         why the service has failed for good, or None
    draining_since  `time.monotonic()` at the signal to stop, or None
    """

    def __init__(self, default_model: str | None) -> None:
        """`default_model`: the setting."""
        self.catalogue: Catalogue | None = None
        self.failure: str | None = None
        self.draining_since: float | None = None
        self._default_model = default_model

    def drain(self) -> None:
        """Makes /readyz answer 503, so load balancers stop sending requests; those that still arrive are answered."""
        if self.draining_since is None:
            self.draining_since = time.monotonic()

    @property
    def draining(self) -> bool:
        return self.draining_since is not None

    def fail(self, reason: str) -> None:
        """Records that the service has failed for good. The server then ends the process."""
        log.error("%s", reason)
        self.failure = self.failure or reason

    @property
    def loaded(self) -> bool:
        return self.catalogue is not None

    def not_ready(self) -> NotReadyError | None:
        """Why `/readyz` answers 503 now, or None if the service is ready."""
        if self.draining:
            return NotReadyError("draining")
        return self.cannot_answer()

    def cannot_answer(self) -> NotReadyError | None:
        """Why requests cannot be answered now, or None if they can. A draining service still answers."""
        if self.failure:
            return NotReadyError("failed", self.failure)
        if not self.loaded:
            return NotReadyError("loading")
        if not self.models:
            return NotReadyError("no_model")
        return None

    @property
    def models(self) -> dict[str, dict[int, ServedModel]]:
        """The served models by name and version. The dictionary is never modified, only replaced."""
        return self.catalogue.models if self.catalogue else {}

    @property
    def refused(self) -> dict[str, str]:
        """The reason for each version in the store that is not served, by "name/version"."""
        return self.catalogue.refused if self.catalogue else {}

    @property
    def default_model(self) -> str | None:
        """The model for requests that name none."""
        preferred = self.catalogue.default if self.catalogue else None
        return choice.default_model(self.models, self._default_model, preferred)

    def model(self, name: str | None, version: int | None) -> ServedModel:
        """The model for a request. Raises NotReadyError, choice.UnknownModelError or choice.NoDefaultModelError."""
        if error := self.cannot_answer():
            raise error
        return choice.choose(self.models, self.default_model, name, version)
