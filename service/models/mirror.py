"""A local copy of a model store at a URL, which is brought up to date before each scan (contract 4.9).

The copy has the layout of a store, so everything else works on it as on any folder. A version is fetched into a hidden
folder, which is then renamed. So it appears at once, with all files that the store had, and whether they fit together
is for the loader to say. A hidden file in the folder records which files these were. The copy needs no lock: another
process that uses it finds the same folders, and at worst fetches a version again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from service.engine.model import ModelRefusedError, load_model
from service.models.remote import NO_ROOM, Contents, Remote, RemoteError, RemoteFile
from service.models.store import LARGEST_FILE, ModelPlace, directories, parse_place, write_bytes

RECORD = ".fetched.json"  # in the folder of a version: the sizes and stamps of its files in the store
MOST_VERSIONS = 1000  # that are fetched, the newest of each model first; each takes memory once it is served
MOST_FILES = 100  # of a version, by name
SYNC_SECONDS = 10.0  # after which the versions fetched so far are loaded before the others are fetched
RETRY_SECONDS = 60.0  # before a version that could not be fetched is tried again
FEW_FILES = 1000  # which S3 lists by one request
REST_SECONDS = 0.0013  # until the next listing, for each further file; each takes about 0.13 ms of a core, so 10 %
FREE_BYTES = 64 * 2**20  # of the file system that stay free
LEFT_BEHIND_SECONDS = 86_400.0  # after which a hidden folder is not another process's any more

Record = dict[str, list[int | str]]

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A version that could not be fetched: its files at that time, why, and when to try again."""

    wanted: Record
    message: str
    retry_at: float


class Mirror:
    """Keeps `folder` equal to the store `remote`. One thread at a time may use it.

    contents  of the store, as last listed; None before that
    """

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        default: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`default`: the setting, as `name` or `name/version`; the model that it names is fetched first."""
        self.contents: Contents | None = None
        self._remote = remote
        self._folder = folder
        self._default = default
        self._clock = clock
        self._records: dict[str, Record] = {}  # of the versions in the folder
        self._listed: dict[str, Record] = {}  # the versions of the last listing
        self._choices: dict[str, tuple[str, bytes]] = {}  # the stamp and the contents of each file `default`
        self._failures: dict[str, Failure] = {}
        self._left_out = 0
        self._list_at = 0.0

    def sync(self, seconds: float = SYNC_SECONDS) -> str | None:
        """Brings the folder up to date. Returns why this is not possible now, or None.

        After `seconds` it stops fetching, but not before it has fetched one version.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self.contents is None:
                self._clean_up()
            contents = self._list()
            if not contents.names and any(directories(self._folder).names):
                return "the model store is empty; publish a model, or correct MODEL_STORE"
            self._read_choices(contents)
            fault = self._fetch_versions(contents, self._clock() + seconds)
            self._apply_choices(contents)
            self._remove_others(contents)
            return fault
        except RemoteError as error:
            return str(error)
        except OSError as error:
            return _local_fault(error)

    def _list(self) -> Contents:
        """The contents of the store. A large store is listed less often, because reading the list takes time."""
        if self.contents is None or self._clock() >= self._list_at:
            self.contents = self._remote.list()
            files = sum(map(len, self.contents.versions.values()))
            self._list_at = self._clock() + REST_SECONDS * max(0, files - FEW_FILES)
        return self.contents

    # --- versions ----------------------------------------------------------------------------------------------------

    def _fetch_versions(self, contents: Contents, until: float) -> str | None:
        """Fetches what is new or has changed. Returns why a version could not be fetched, or None."""
        places = self._in_order(contents)
        wanted = {place: _record(contents.versions[place]) for place in places}
        self._failures = {place: self._failures[place] for place in places if place in self._failures}
        due = [place for place in places if self._is_due(place, wanted[place])]
        self._listed = wanted
        for place in due:
            try:
                self._fetch(place, contents.versions[place], wanted[place])
            except (RemoteError, OSError) as error:
                if isinstance(error, RemoteError) and not error.lasting:
                    raise  # the others would fail for the same reason
                message = str(error) if isinstance(error, RemoteError) else _local_fault(error)
                self._failures[place] = Failure(wanted[place], message, self._clock() + RETRY_SECONDS)
            if self._clock() >= until:
                break
        if not self._failures:
            return None
        place, failure = next(iter(self._failures.items()))
        more = f" (and {len(self._failures) - 1} more versions)" if len(self._failures) > 1 else ""
        return f"{place} in the model store{more} cannot be fetched: {failure.message}"

    def _in_order(self, contents: Contents) -> list[str]:
        """The versions to keep here: those that are chosen first, then the newest of each model."""
        newest: dict[str, list[str]] = {}
        for place in sorted(contents.versions, key=_number, reverse=True):
            newest.setdefault(place.partition("/")[0], []).append(place)
        chosen = {str(place) for place in self._chosen()}
        # a chosen model without a version: its newest one
        chosen |= {newest[name][0] for name in chosen & newest.keys()}
        ranks = [(place not in chosen, rank, place) for places in newest.values() for rank, place in enumerate(places)]
        places = [place for *_, place in sorted(ranks)]
        left_out = max(0, len(places) - MOST_VERSIONS)
        if left_out != self._left_out and left_out:
            log.warning(
                "the model store has %d versions; %d are fetched, the newest of each model first. Remove old versions",
                len(places),
                MOST_VERSIONS,
            )
        self._left_out = left_out
        return places[:MOST_VERSIONS]

    def _is_due(self, place: str, wanted: Record) -> bool:
        failure = self._failures.get(place)
        if failure and failure.wanted == wanted and self._clock() < failure.retry_at:
            return False
        folder = self._folder / place
        if place not in self._records and (record := _read_record(folder)) is not None:
            # the process or the machine may have stopped while the files were written
            self._records[place] = {} if record == wanted and _is_damaged(folder) else record
        elif not folder.is_dir():
            self._records.pop(place, None)
            return True
        # a version that is being replaced file by file must rest from one listing to the next
        return self._records.get(place) != wanted and self._listed.get(place, wanted) == wanted

    def _fetch(self, place: str, files: dict[str, RemoteFile], wanted: Record) -> None:
        """Fetches a version, without the files that are here already. Raises RemoteError or OSError."""
        known, target = self._records.get(place, {}), self._folder / place
        new = [name for name in wanted if known.get(name) != wanted[name]]
        needed, free = sum(files[name].bytes for name in new), shutil.disk_usage(self._folder).free
        if needed > max(0, free - FREE_BYTES):
            raise OSError(errno.ENOSPC, "")
        aside = Path(tempfile.mkdtemp(prefix=".fetching-", dir=self._folder))
        try:
            aside.chmod(0o755)
            for name in wanted:
                if name in new:
                    self._remote.fetch(files[name], aside / name)
                    _write_through(aside / name)
                else:
                    _link(target / name, aside / name)
            write_bytes(aside / RECORD, json.dumps(wanted).encode())
            target.parent.mkdir(exist_ok=True)
            self._discard(target)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._records[place] = wanted
        self._failures.pop(place, None)
        log.info("model %s is fetched from the model store: %d files, %d bytes", place, len(new), needed)

    def _remove_others(self, contents: Contents) -> None:
        """Removes what has left the store. A model's versions stay until all that replace them are here."""
        waiting = {place.partition("/")[0] for place in self._listed if self._records.get(place) != self._listed[place]}
        listing = directories(self._folder)
        for folder in listing.versions:
            place = f"{folder.parent.name}/{folder.name}"
            if place not in self._listed and folder.parent.name not in waiting:
                self._discard(folder)
                self._records.pop(place, None)
        for name in contents.names:
            (self._folder / name).mkdir(exist_ok=True)
        for name in listing.names:
            if name not in contents.names and not any((self._folder / name).iterdir()):
                (self._folder / name).rmdir()

    def _discard(self, folder: Path) -> None:
        """Removes a folder at once for those that list the store."""
        aside = Path(tempfile.mkdtemp(prefix=".removed-", dir=self._folder))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside / "it")
        shutil.rmtree(aside, ignore_errors=True)

    def _clean_up(self) -> None:
        """Removes what a process that was killed left behind."""
        for folder in [*self._folder.glob(".fetching-*"), *self._folder.glob(".removed-*")]:
            newest = max((each.stat().st_mtime for each in (folder, *folder.glob("*"))), default=0.0)
            if time.time() - newest > LEFT_BEHIND_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)

    # --- the files `default` -----------------------------------------------------------------------------------------

    def _read_choices(self, contents: Contents) -> None:
        """Reads those that are new or have changed."""
        self._choices = {name: self._choices[name] for name in contents.defaults if name in self._choices}
        for name, file in contents.defaults.items():
            if name not in self._choices or self._choices[name][0] != file.stamp:
                self._choices[name] = file.stamp, self._remote.read(file, LARGEST_FILE + 1)

    def _chosen(self) -> Iterable[ModelPlace]:
        """What the setting and the files choose, as far as they can be read."""
        texts = {name: data for name, (_, data) in self._choices.items()}
        if self._default:
            texts[""] = self._default.encode()  # the file counts without the setting alone
        for name, data in texts.items():
            if place := _place(name, data):
                yield place

    def _apply_choices(self, contents: Contents) -> None:
        """Copies them. One that names a version which is still to be fetched waits for it."""
        for name, (_, data) in self._choices.items():
            place, file = _place(name, data), self._folder / name / "default"
            if place is None or not self._awaited(place):
                file.parent.mkdir(exist_ok=True)
                if not file.is_file() or file.read_bytes() != data:
                    write_bytes(file, data)
        for name in ["", *directories(self._folder).names]:
            if name not in contents.defaults:
                (self._folder / name / "default").unlink(missing_ok=True)

    def _awaited(self, place: ModelPlace) -> bool:
        """Whether the store has this model or version, and the folder has not."""
        its = [each for each in self._listed if each == str(place) or each.startswith(f"{place}/")]
        return bool(its) and not any((self._folder / each).is_dir() for each in its)


def _place(name: str, data: bytes) -> ModelPlace | None:
    """What a file `default` chooses: that of the store (`name` is "") or of a model. None if it is faulty."""
    try:
        text = data.decode().strip()
        return parse_place(f"{name}/{text}" if name else text)
    except ValueError:
        return None


def _record(files: dict[str, RemoteFile]) -> Record:
    """The files to fetch. Graphs without a card cannot be served, so they are not fetched before it is there."""
    names = sorted(files)[:MOST_FILES] if "model.json" in files else []
    return {name: [files[name].bytes, files[name].stamp] for name in {*names, *(["model.json"] if names else [])}}


def _read_record(folder: Path) -> Record | None:
    """What is recorded about a version in the folder; empty if the record cannot be read, None without the folder."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {} if folder.is_dir() else None
    return record if isinstance(record, dict) else {}


def _is_damaged(folder: Path) -> bool:
    """Whether the copy cannot be served, which is so too if the version in the store cannot."""
    try:
        load_model(folder)
    except ModelRefusedError:
        return True
    return False


def _number(place: str) -> tuple[float, str]:
    version = place.partition("/")[2]
    return (int(version) if version.isdecimal() and len(version) <= 16 else -math.inf), version


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)


def _write_through(file: Path) -> None:
    """Waits until a file is on the disk, so that no record names a file that a power failure has emptied."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _local_fault(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return NO_ROOM
    reason = os.strerror(error.errno).lower() if error.errno else type(error).__name__
    return f"MODEL_CACHE cannot be used ({reason}); correct its permissions"
