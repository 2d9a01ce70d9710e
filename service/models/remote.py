"""A model store in object storage or at another URL, by fsspec: lists it, and reads and writes single files.

fsspec and the library of a scheme are imported when they are first used, because only a store at a URL needs them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from service.models.store import write_bytes

# schemes, and the module that fsspec needs for each
MODULES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "file": "fsspec"}
NO_ROOM = "there is no room in MODEL_CACHE; free some, or remove old versions from the store"
EXTRA = "pip install 'faster-rcnn-service[store]'"
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}
# They log every session or request at the level info.
LIBRARIES = ("aiobotocore", "botocore", "s3fs", "gcsfs", "google", "azure", "adlfs")
DEEPEST = 3  # folders below a store of files that are listed: those of models, of versions, and one too many
LIST_SECONDS = 60.0  # for a listing; S3 lists 10,000 versions in a few seconds
IDLE_SECONDS = 60.0  # without a further byte, after which a transfer is given up
# Without them botocore waits a minute for each of five attempts, and its own environment variables do not set these.
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2}}}

# The libraries of the three clouds have no exception in common, so their types are told by name.
_NO_CREDENTIALS = re.compile(
    r"(No|Partial)CredentialsError|Credential(Retrieval|Unavailable|s)Error|ProfileNotFound|DefaultCredentialsError"
    r"|RefreshError|ClientAuthenticationError|.*(SSO|Token)\w*Error"
)
_WORD = re.compile(r"(?!\.)[^\\/\x00-\x1f\x7f]{1,200}")  # a part of a path that is safe as the name of a local file
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)  # one letter would be a drive of Windows

T = TypeVar("T")

log = logging.getLogger(__name__)


class RemoteError(Exception):
    """The store at a URL cannot be used now. The message says why, without the URL.

    lasting  whether it stays so until somebody changes the setting, the rights or the store
    """

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class RemoteFile(NamedTuple):
    """A file of the store.

    path   as fsspec takes it
    bytes  its size
    stamp  a text that changes with its contents: the ETag, else the times and the inode
    """

    path: str
    bytes: int
    stamp: str


class Contents(NamedTuple):
    """What one listing of a store found.

    names     of the folders of models
    versions  the files of each version, by "name/version" and by file; hidden ones and folders in it are left out
    defaults  the files `default`: under "" that of the store, under a model's name its own
    misplaced where the store probably is, if it holds no version but a folder above or below it does; else None
    """

    names: set[str]
    versions: dict[str, dict[str, RemoteFile]]
    defaults: dict[str, RemoteFile]
    misplaced: str | None = None


def is_url(text: object) -> bool:
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def parse_url(text: str) -> str:
    """The URL of a store, with its scheme in small letters and without a slash at its end.

    Raises ValueError unless the scheme is known and something follows it.
    """
    found = _URL.fullmatch(text)
    scheme, slash, rest = found.groups() if found else ("", "", text)
    scheme = scheme.lower()
    if scheme not in MODULES:
        raise ValueError(f"must be a folder, or a URL that begins with {_SCHEMES}; {scheme}:// is not supported")
    if not slash or not rest.strip("/"):
        example = "file:///srv/models" if scheme == "file" else f"{scheme}://bucket/models"
        raise ValueError(f"must be a folder, or a complete URL such as {example}")
    if "?" in rest or re.match(r"[^/@]*:[^/@]*@", rest):
        raise ValueError("must be a URL without a query or a password; credentials belong in variables of their own")
    return f"{scheme}://{rest.rstrip('/')}"


_SCHEMES = "s3://, gs://, az:// or file://"


def missing_library(url: str) -> str | None:
    """Why the scheme of `url` cannot be used here, if its library is not installed; else None."""
    module = MODULES[url.partition(":")[0]]
    for each in ("fsspec", module):
        if importlib.util.find_spec(each) is None:
            return f"{each} is not installed; install it with {EXTRA}"
    return None


def copy_folder(url: str, cache: Path | None) -> Path:
    """The folder for the copy of the store at `url`: one of its own in `cache`, else in the user's cache folder.

    Raises ValueError if there is neither.
    """
    if cache is None:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faster-rcnn" / "stores"
        except RuntimeError:
            raise ValueError("the user has no home folder; set MODEL_CACHE to a folder for fetched models") from None
    url = parse_url(url)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url.partition("://")[2])[-40:].strip("-")
    return cache.absolute() / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


class Remote:
    """The store at `url`. Its methods raise RemoteError. One thread at a time may use it."""

    def __init__(self, url: str, idle_seconds: float = IDLE_SECONDS, list_seconds: float = LIST_SECONDS) -> None:
        self.url = parse_url(url)
        self._scheme = self.url.partition(":")[0]
        self._idle_seconds = idle_seconds
        self._list_seconds = list_seconds
        self._opened: tuple[Any, str] | None = None
        self._waiting = _Waiting()

    def list(self) -> Contents:
        """Lists the store by one call, which takes S3 one request for each 1,000 files."""
        found = self._do(_listing, self._list_seconds)
        return contents(found, self._open()[1], self.url)

    def read(self, file: RemoteFile, limit: int) -> bytes:
        """The first `limit` bytes of a file."""
        if file.bytes == 0:  # a range of an empty object is an error
            return b""
        return self._do(lambda fs, _: bytes(fs.cat_file(file.path, start=0, end=limit)), self._idle_seconds)

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Copies a file to `target`. It is given up if no byte arrives for a while."""
        self._do(lambda fs, _: fs.get_file(file.path, str(target)), self._idle_seconds, progress=lambda: _size(target))

    def write(self, path: str, data: bytes) -> None:
        """Writes the file with this path in the store, whole or not at all."""
        self._do(lambda fs, root: _write(fs, f"{root}/{path}", data), self._idle_seconds)

    def remove(self, path: str) -> None:
        """Removes the file with this path in the store, if it is there."""
        self._do(
            lambda fs, root: fs.rm_file(f"{root}/{path}") if fs.exists(f"{root}/{path}") else None, self._idle_seconds
        )

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec

            for name in LIBRARIES:
                logging.getLogger(name).setLevel(logging.WARNING)
            options = S3_OPTIONS if self._scheme == "s3" else {}
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True, **options)
            self._opened = fs, root.rstrip("/")
        return self._opened

    def _do(self, action: Callable[[Any, str], T], seconds: float, progress: Callable[[], object] = lambda: None) -> T:
        try:
            return self._waiting.call(lambda: action(*self._open()), seconds, progress)
        except Exception as error:
            log.debug("the model store: %s", type(error).__name__, exc_info=error)
            explained = self._explained(error)
            if explained.lasting:
                self._opened = None  # credentials may be others by the next call
            raise explained from error

    def _explained(self, error: Exception) -> RemoteError:
        """The error in words of our own, because a library's may hold names and addresses."""
        chain = [each for each in (error, error.__cause__, error.__context__) if each is not None]
        names = [type(each).__name__ for each in chain]
        if isinstance(error, ImportError):
            return RemoteError(f"{MODULES[self._scheme]} is not installed; install it with {EXTRA}", lasting=True)
        az_without_account = isinstance(error, ValueError) and self._scheme.startswith("a")
        if any(map(_NO_CREDENTIALS.fullmatch, names)) or az_without_account:
            remedy = CREDENTIALS.get(self._scheme, CREDENTIALS["az"])
            return RemoteError(f"no valid credentials for the model store were found; {remedy}", lasting=True)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return RemoteError("there is no such bucket or folder; correct its name, or create it", lasting=True)
        if isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403):  # the latter of gcsfs
            return RemoteError(
                "access to the model store was denied; check the credentials, and that they may list and read it",
                lasting=True,
            )
        if "ParamValidationError" in names:
            return RemoteError("the bucket cannot have this name; correct it", lasting=True)
        if isinstance(error, TimeoutError):
            return RemoteError("the model store does not answer in time; check the network and the address")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return RemoteError(NO_ROOM, lasting=True)
        return RemoteError(
            f"the model store cannot be reached ({type(error).__name__}); check the network and the address "
            "(LOG_LEVEL=debug logs the cause)"
        )


def contents(found: Mapping[str, Mapping[str, Any]], root: str, url: str) -> Contents:
    """What fsspec's listing of everything below `root` holds. Paths that no local file may have are left out."""
    listed = Contents(set(), {}, {})
    cards: list[list[str]] = []
    for path, entry in found.items():
        words = path[len(root) :].strip("/").split("/")
        if not all(map(_WORD.fullmatch, words)):
            continue
        is_folder = entry["type"] == "directory" or path.endswith("/")  # such an object stands for an empty folder
        if words[-1] == "model.json" and not is_folder:
            cards.append(words)
        if is_folder or len(words) > 3:
            listed.names.add(words[0])
            if len(words) > 1:
                listed.versions.setdefault("/".join(words[:2]), {})
            continue
        file = RemoteFile(path, entry.get("size") or 0, _stamp(entry))
        if words[-1] == "default" and len(words) < 3:
            listed.defaults["/".join(words[:-1])] = file
        if len(words) > 1:
            listed.names.add(words[0])
        if len(words) == 3:
            listed.versions.setdefault("/".join(words[:2]), {})[words[2]] = file
    return listed._replace(misplaced=_misplaced(cards, url))


def _misplaced(cards: list[list[str]], url: str) -> str | None:
    """Why a store is probably at another place, if none of its cards is at the right depth, with that place."""
    found = next((words for words in cards if len(words) == 1 or words[-2].isdecimal()), None)
    if not found or any(len(words) == 3 for words in cards):
        return None
    if len(found) > 3:
        return f"this is a folder above the model store; set it to '{'/'.join([url, *found[:-3]])}'"
    what, up = (("the folder of one version", 2), ("the folder of one model", 1))[len(found) - 1]
    return f"this is {what}; set it to '{url.rsplit('/', up)[0]}'"


def _listing(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    if "file" in fs.protocol:
        return _files(Path(root))
    found: dict[str, dict[str, Any]] = fs.find(root, withdirs=True, detail=True)
    found.pop(root, None)
    if not found and not fs.exists(root):
        raise FileNotFoundError
    return found or {f"{root}/": {"type": "directory"}}


def _files(root: Path) -> dict[str, dict[str, Any]]:
    """The same for a folder. fsspec would not follow links, and would leave out what cannot be read now."""

    def fail(error: OSError) -> None:
        if Path(error.filename).name != "lost+found":
            raise error

    found: dict[str, dict[str, Any]] = {f"{root}/": {"type": "directory"}}
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        for name in [*folders, *files]:
            with contextlib.suppress(FileNotFoundError):  # removed since, or a link that leads nowhere
                status = (Path(folder) / name).stat()
                kind = "directory" if stat.S_ISDIR(status.st_mode) else "file"
                found[f"{folder}/{name}"] = {
                    "type": kind,
                    "size": status.st_size,
                    "mtime": status.st_mtime_ns,
                    "created": status.st_ctime_ns,
                    "ino": status.st_ino,
                }
        if len(Path(folder).relative_to(root).parts) >= DEEPEST:
            folders.clear()
    return found


def _stamp(entry: Mapping[str, Any]) -> str:
    tag = entry.get("ETag") or entry.get("etag")
    return str(tag) if tag else "-".join(str(entry.get(key)) for key in ("mtime", "created", "last_modified", "ino"))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _write(fs: Any, path: str, data: bytes) -> None:
    if "file" not in fs.protocol:  # object storage shows an object once it is complete
        fs.pipe_file(path, data)
        return
    write_bytes(Path(path), data)


class _Waiting:
    """Calls functions that may hang, one at a time, and stops waiting for them."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T], seconds: float, progress: Callable[[], object]) -> T:
        """The result of `function`. Raises TimeoutError if `progress` returned the same for `seconds`.

        The function then goes on in its thread, and until it has ended, every call raises TimeoutError.
        """
        if self._thread and self._thread.is_alive():
            raise TimeoutError
        results: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)

        self._thread = threading.Thread(target=run, name="store", daemon=True)
        self._thread.start()
        last, since = progress(), time.monotonic()
        while self._thread.is_alive():
            self._thread.join(min(1.0, seconds))
            if (now := progress()) != last:
                last, since = now, time.monotonic()
            if self._thread.is_alive() and time.monotonic() - since >= seconds:
                raise TimeoutError
        if errors:
            raise errors[0]
        return results[0]
