"""The clients' keys: the file that lists them, the keys that are valid now, and the limits of each key.

The file holds SHA-256 digests, so a reader of the file cannot use the service. A key has 256 random bits: nobody can
guess it from its digest, however fast the hash is. A slow hash, as for passwords, would only slow down every request.

A line of the file: `NAME sha256:DIGEST [in-flight=N] [per-second=R]`. Text after `#` is a comment.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST_KEYS = 1000  # every request is compared with each of them, and metrics have series for each
LONGEST_FILE = 2**20  # bytes
HIGHEST_RATE = 1_000_000.0  # requests per second
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"sha256:([0-9A-Fa-f]{64})")
PREFIX = "frcnn_"  # lets programs that search for leaked secrets recognise a key
HOW_TO_ADD = "`faster-rcnn key NAME` makes a key"
REMEDY = f"write NAME sha256:DIGEST, then if wanted in-flight=N and per-second=R; {HOW_TO_ADD} and prints its line"

log = logging.getLogger(__name__)


class KeysFileError(Exception):
    """The file of keys cannot be used; the message names the line and the remedy, and quotes nothing but names."""


class KeyLimitError(Exception):
    """A key has reached one of its limits. `retry_after`: seconds until a request may be admitted."""

    def __init__(self, limit: str, retry_after: int) -> None:
        super().__init__(limit, retry_after)
        self.limit = limit
        self.retry_after = retry_after


class Limits(NamedTuple):
    """The limits of one key; None means that there is no such limit.

    in_flight   requests at a time
    per_second  requests per second on average. As many as one second allows, and at least one, may come at once
    """

    in_flight: int | None = None
    per_second: float | None = None


class Entry(NamedTuple):
    """One line of the file."""

    name: str
    digest: bytes
    limits: Limits


class Key:
    """One key, with its requests in flight and its rate. Only the event loop calls its methods."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.in_flight = 0
        self._tokens = math.inf  # requests that may come at once; `_refill` reduces it to the limit
        self._filled = 0.0

    def enter(self, now: float) -> None:
        """Counts a request as in flight until `leave`. `now`: seconds on a monotonic clock. Raises KeyLimitError."""
        most, rate = self.limits
        if most is not None and self.in_flight >= most:
            raise KeyLimitError(f"{most} requests in flight", 1)
        if rate is not None:
            self._refill(now, rate)
            if self._tokens < 1:
                raise KeyLimitError(f"{rate:g} requests per second", max(1, math.ceil((1 - self._tokens) / rate)))
            self._tokens -= 1
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1

    def _refill(self, now: float, rate: float) -> None:
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._filled) * rate)
        self._filled = now


def read(path: Path) -> bytes:
    """The contents of the file of keys. Raises KeysFileError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a named pipe could block for ever
            raise KeysFileError("this is not a file")
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except FileNotFoundError:
        raise KeysFileError("there is no such file") from None
    except OSError as error:
        raise KeysFileError(f"the file cannot be read ({(error.strerror or 'unknown error').lower()})") from None
    if len(data) > LONGEST_FILE:
        raise KeysFileError(f"the file is larger than {LONGEST_FILE:,} bytes")
    return data


class Keys:
    """The keys that are valid now, from the file `path`.

    The event loop looks keys up; another thread may call `refresh`, one call at a time. It replaces the list of keys as
    a whole.
    """

    def __init__(self, path: Path) -> None:
        """Raises KeysFileError if the file cannot be used."""
        self._path = path
        self._text = read(path)
        self._keys: list[tuple[bytes, Key]] = []
        self._fault = ""
        self._use(parse(self._text))

    @property
    def names(self) -> set[str]:
        return {key.name for _, key in self._keys}

    def find(self, presented: bytes) -> Key | None:
        """The key that a client presented, or None. The time it takes does not depend on which key is the right one."""
        digest = hashlib.sha256(presented).digest()
        found = None
        for known, key in self._keys:
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def refresh(self) -> set[str]:
        """Reads the file again. Returns the names that it no longer has.

        If the file has become unreadable or faulty, the previous keys stay valid, and the log says so once.
        """
        before = self.names
        try:
            text = read(self._path)  # comparing the text also notices changes that leave size and time as they were
            if text == self._text and not self._fault:
                return set()
            entries = parse(text)
        except KeysFileError as error:
            if str(error) != self._fault:
                self._fault = str(error)
                log.warning("API_KEYS_FILE=%s: %s; the previous keys stay valid", self._path, error)
            return set()
        self._text, self._fault = text, ""
        self._use(entries)
        return before - self.names

    def _use(self, entries: list[Entry]) -> None:
        known = {key.name: key for _, key in self._keys}
        keys = []
        for entry in entries:
            key = known.get(entry.name) or Key(entry.name, entry.limits)
            key.limits = entry.limits
            keys.append((entry.digest, key))
        self._keys = keys
        if keys:
            log.info("API_KEYS_FILE=%s: number of valid keys: %d", self._path, len(keys))
        else:
            log.warning("API_KEYS_FILE=%s has no keys: every request gets 401. %s", self._path, HOW_TO_ADD)


def parse(text: bytes) -> list[Entry]:
    """The keys in the text of a file. Raises KeysFileError, which names the line."""
    try:
        lines = text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise KeysFileError("the file is not UTF-8 text") from None
    entries: list[Entry] = []
    places: dict[str | bytes, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found = entry(words)
        except ValueError as error:
            raise KeysFileError(f"line {number}: {error}") from None
        for what, value in (("name", found.name), ("key", found.digest)):
            if value in places:
                raise KeysFileError(f"line {number}: the same {what} is on line {places[value]}; remove one of them")
            places[value] = number
        entries.append(found)
    if len(entries) > MOST_KEYS:
        raise KeysFileError(f"the file has {len(entries)} keys; at most {MOST_KEYS} are possible")
    return entries


def entry(words: list[str]) -> Entry:
    """The key in the words of a line. Raises ValueError without repeating them, because they may hold a secret."""
    name, *rest = words
    if not NAME.fullmatch(name) or name.startswith(PREFIX):
        raise ValueError(f"a name has 1 to 64 of the characters A-Z a-z 0-9 . _ - and does not begin with {PREFIX}")
    digest = DIGEST.fullmatch(rest[0]) if rest else None
    if not digest:
        raise ValueError(REMEDY)
    limits: dict[str, float] = {}
    for option, value in _options(rest[1:]):
        if option in limits:
            raise ValueError(f"{option} is given twice")
        limits[option] = value
    in_flight = limits.get("in-flight")
    return Entry(
        name,
        bytes.fromhex(digest[1]),
        Limits(None if in_flight is None else int(in_flight), limits.get("per-second")),
    )


def _options(words: list[str]) -> Iterator[tuple[str, float]]:
    """The limits in the rest of a line. Raises ValueError."""
    for word in words:
        option, _, text = word.partition("=")
        if option == "in-flight":
            if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
                raise ValueError("in-flight must be a whole number of at least 1")
            yield option, int(text)
        elif option == "per-second":
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not 0 < float(text) <= HIGHEST_RATE:
                raise ValueError("per-second must be a number greater than 0, such as 0.5 or 10")
            yield option, float(text)
        else:
            raise ValueError(REMEDY)


def new() -> str:
    """A new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """The digest of a key, as the file holds it."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
