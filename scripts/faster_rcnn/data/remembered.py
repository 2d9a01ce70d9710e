"""Remembers what decoding found, so that a check goes on where it was interrupted and need not decode a file twice.

A file counts as the same if its path, size, inode and times of change are; then it is not even read. A file that was
copied, moved or mounted elsewhere is read, and not decoded if its bytes are known. The facts are in one SQLite file in
the user's cache folder, or in the folder that FASTER_RCNN_CACHE names; if that is blank, nothing is remembered.
"""

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from faster_rcnn.data.image_facts import ImageFacts, facts_from_json, rules
from faster_rcnn.user_cache import user_cache

T = TypeVar("T")

FOLDER_VARIABLE = "FASTER_RCNN_CACHE"
MOST_FILES = 2_000_000  # about 600 MB; the files that were checked longest ago are forgotten
SAVE_EVERY = 5.0  # seconds; what a killed process loses
# A file that has changed within this time may change again without another time stamp: some file systems count in
# whole or even in two seconds.
UNSETTLED = 3_000_000_000  # ns
_TABLE = "CREATE TABLE IF NOT EXISTS images (path BLOB PRIMARY KEY, stamp TEXT, rules TEXT, facts TEXT)"
_INDEX = "CREATE INDEX IF NOT EXISTS contents ON images (json_extract(facts, '$.digest'))"
_FORGET = "DELETE FROM images WHERE rowid IN (SELECT rowid FROM images ORDER BY rowid DESC LIMIT -1 OFFSET ?)"


def cache_folder() -> Path | None:
    """Where facts are kept; None if they are not to be kept."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named.strip() else None
    return user_cache()


def open_remembered() -> "Remembered":
    """The facts in the cache folder. Call `close` when they are no longer needed."""
    folder = cache_folder()
    return Remembered(None if folder is None else folder / "images.sqlite")


class Remembered:
    """Facts about files. Several threads may use them.

    Nothing here fails: a cache that is damaged, locked, or cannot be written is not used, which is said once.
    """

    def __init__(self, file: Path | None, clock: Callable[[], int] = time.time_ns, most: int = MOST_FILES) -> None:
        self._file = file
        self._clock = clock
        self._most = most
        self._saved = time.monotonic()
        self._rows: list[tuple[object, ...]] = []
        self._database: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        if file is not None:
            self._attempt(lambda: self._open(file))

    def _open(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file, timeout=10, check_same_thread=False)
        self._database.execute(_TABLE)
        self._database.execute(_INDEX)
        self._database.execute("SELECT path, stamp, rules, facts FROM images LIMIT 1")

    def get(self, path: Path, status: os.stat_result) -> ImageFacts | None:
        """What was found in a file; None if it is unknown or has changed since."""
        query = "SELECT facts FROM images WHERE path = ? AND stamp = ? AND rules = ?"
        return self._first(query, (_name(path), _stamp(status), rules()))

    def of_content(self, digest: str) -> ImageFacts | None:
        """What was found in any file whose bytes had this SHA-256."""
        query = "SELECT facts FROM images WHERE json_extract(facts, '$.digest') = ? AND rules = ? LIMIT 1"
        return self._first(query, (digest, rules()))

    def _first(self, query: str, key: tuple[object, ...]) -> ImageFacts | None:
        with self._lock:
            row: list[str] | None = None
            if self._database is not None:
                row = self._attempt(lambda: self._execute(query, key).fetchone())
        if row is None:
            return None
        try:
            return facts_from_json(row[0])
        except ValueError:
            return None

    def put(self, path: Path, status: os.stat_result, facts: ImageFacts) -> None:
        """Remembers what was found in a file.  status: taken before the file was read."""
        with self._lock:
            self._put(path, status, facts)

    def _put(self, path: Path, status: os.stat_result, facts: ImageFacts) -> None:
        if self._database is None or self._clock() - max(status.st_mtime_ns, status.st_ctime_ns) < UNSETTLED:
            return
        row = (_name(path), _stamp(status), rules(), json.dumps(facts.to_json()))
        self._rows.append(row)
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def close(self) -> None:
        """Saves what was put."""
        self._save()
        if self._database is not None:
            self._database.close()
            self._database = None

    def _save(self) -> None:
        """Writes what was put since the last time, in one short transaction: other processes may wait for it."""
        rows, self._rows, self._saved = self._rows, [], time.monotonic()
        database = self._database
        if database is None or not rows:
            return

        def write() -> None:
            with database:
                database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)
                database.execute(_FORGET, (self._most,))

        self._attempt(write)

    def _execute(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        assert self._database is not None
        return self._database.execute(statement, values)

    def _attempt(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except (sqlite3.Error, OSError) as error:
            damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
            why = "is damaged; delete it" if damaged else f"cannot be used; name another folder in {FOLDER_VARIABLE}"
            print(f"warning: checked images are not remembered, because {self._file} {why}", file=sys.stderr)
            if self._database is not None:
                self._database.close()
                self._database = None
            return None


def _name(path: Path) -> bytes:
    return os.fsencode(path.absolute())


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
