"""Whether the service can answer requests now, and which of its models answers each of them."""

from __future__ import annotations

import logging
import time
from typing import Literal

from service.models.catalogue import Catalogue
from service.models.choice import Choices, NotServedError
from service.models.served_model import ServedModel

log = logging.getLogger(__name__)


class NotReadyError(Exception):
    """The service cannot answer now. `failure` explains the reasons "failed" and "no_model"."""

    def __init__(self, reason: Literal["draining", "failed", "loading", "no_model"], failure: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.failure = failure


class Readiness:
    """The state of the service as requests and `/readyz` see it.

    The event loop and the thread that loads models replace its attributes as a whole, so readers need no lock.

    catalogue       None until the models are loaded
    store_fault     why the model store cannot be scanned now, or None; what is loaded is still served
    failure         why the service has failed for good, or None
    draining_since  `time.monotonic()` at the signal to stop, or None
    """

    def __init__(self) -> None:
        self.catalogue: Catalogue | None = None
        self.store_fault: str | None = None
        self.failure: str | None = None
        self.draining_since: float | None = None

    def drain(self) -> None:
        """Makes /readyz answer 503, so load balancers stop sending requests; those that still arrive are answered."""
        if self.draining_since is None:
            self.draining_since = time.monotonic()

    @property
    def draining(self) -> bool:
        return self.draining_since is not None

    def fail(self, reason: str, place: str = "") -> None:
        """Records that the service has failed for good. The server then ends the process.

        place  where on the server; it is logged, but clients do not see it
        """
        log.error("%s%s", f"{place}: " if place else "", reason)
        self.failure = self.failure or reason

    @property
    def loaded(self) -> bool:
        return self.catalogue is not None

    def not_ready(self) -> NotReadyError | NotServedError | None:
        """Why `/readyz` answers 503 now, or None if the service is ready."""
        if self.draining:
            return NotReadyError("draining")
        return self.cannot_answer() or self.choices.default_missing()

    def cannot_answer(self) -> NotReadyError | None:
        """Why no request can be answered now, or None if some can. A draining service still answers."""
        if self.failure:
            return NotReadyError("failed", self.failure)
        if not self.loaded:
            return NotReadyError("loading")
        if not self.choices.served:
            return NotReadyError("no_model", self.choices.why_nothing_is_served() or self.store_fault or "")
        return None

    @property
    def choices(self) -> Choices:
        """What requests can choose from. A refresh replaces it, so read it once for several questions."""
        return self.catalogue.choices if self.catalogue else _NOTHING

    def model(self, name: str | None, version: int | None) -> ServedModel:
        """The model for a request. Raises NotReadyError, or what Choices.choose raises."""
        if error := self.cannot_answer():
            raise error
        return self.choices.choose(name, version)


_NOTHING = Choices()
