"""Request ids: a client's own, or a new one."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def new_id() -> str:
    """An id that need not be secret, only unlikely to occur twice."""
    return f"{random.getrandbits(128):032x}"


def id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The request's own id in X-Request-ID, or a new one if it has none, several, or one that is not acceptable."""
    given = [value for name, value in headers if name == b"x-request-id"]
    return given[0].decode() if len(given) == 1 and ACCEPTABLE.fullmatch(given[0]) else new_id()
