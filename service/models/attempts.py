"""Decides when to load a version: at once, again after a failure that may pass, or once its copy is complete.

A folder whose files are missing, cut short or do not match may be a copy in progress. It is not read again while its
files change, because hashing a large file takes seconds. Once they rest, it is read again, and after a while the copy
counts as stalled.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from service.engine.model import ModelIncompleteError, ModelMismatchError, ModelRefusedError
from service.models.store import Signature

FIRST_RETRY_SECONDS = 2.0  # doubles with every failure
LAST_RETRY_SECONDS = 60.0
STALLED_SECONDS = 30.0  # without a change, after which an incomplete version is refused
MISMATCH_SECONDS = 4.0  # the same if one file of a known version was replaced, as the other may be replaced next


@dataclass
class Attempts:
    """What has been tried with one folder.

    signature  of the files, when they were last looked at
    changed    the clock when the signature last changed
    read       the signature of the files that were last read
    known      whether the files were read before
    failures   in a row, each for a reason that may pass
    retry_at   when to try again after such a failure
    missing    why the last attempt found the version incomplete; None if it did not
    """

    signature: Signature | None = None
    changed: float = 0.0
    read: Signature | None = field(default=None, repr=False)
    known: bool = False
    failures: int = 0
    retry_at: float = math.inf
    missing: ModelRefusedError | None = None

    def due(self, signature: Signature, now: float) -> bool:
        """Notes what the files look like `now`. Returns whether to load the version."""
        changed = signature != self.signature
        if changed:
            self.signature, self.changed = signature, now
            self.failures = 0
        wait = changed and self.missing is not None  # the copy is still moving
        if wait or (self.read == signature and now < self.retry_at):
            return False
        self.known = self.read is not None
        self.read, self.retry_at = signature, math.inf
        return True

    def failed_for_now(self, now: float) -> None:
        """Notes a failure for a reason that may pass."""
        self.missing = None
        self.failures += 1
        # 2.0 to the power of a large number would overflow
        wait = FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 10)
        self.retry_at = now + min(wait, LAST_RETRY_SECONDS)

    def is_stalled(self, now: float) -> bool:
        """Whether the files of an incomplete version have not changed for so long that nobody copies them."""
        if isinstance(self.missing, ModelIncompleteError):
            patience = STALLED_SECONDS
        else:
            patience = MISMATCH_SECONDS if self.known else 0.0
        return max(now - self.changed, self._age()) >= patience

    def bytes(self) -> int:
        """The size of the files, when they were last looked at."""
        return sum(file[3] for file in self.signature or () if len(file) > 3)

    def _age(self) -> float:
        """Seconds since the last change according to the file system, for files that were there before the process."""
        changes = [file[2] for file in self.signature or () if len(file) > 3]
        return time.time() - max(changes) / 1e9 if changes else 0.0


def is_incomplete(error: Exception) -> bool:
    """Whether a copy in progress explains the refusal."""
    return isinstance(error, ModelIncompleteError | ModelMismatchError)


def place_of(directory: Path) -> str:
    return f"{directory.parent.name}/{directory.name}"
