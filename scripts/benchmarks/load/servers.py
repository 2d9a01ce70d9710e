"""The servers that are measured: this service and a plain server, both started here, or one that is already running."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from benchmarks.load import process_usage
from benchmarks.load.load_tables import SERVICE
from benchmarks.load.process_usage import Usage
from benchmarks.workers import Failed

ROOT = Path(__file__).resolve().parents[3]
START_UP, STOP = 120.0, 60.0  # seconds
NO_SETTINGS: Mapping[str, str] = {}
PLAIN_APP = "benchmarks.load.plain_server:app"


class Server(Protocol):
    """name: in the tables;  url: where images are sent;  pids: its processes, empty if it was not started here."""

    name: str
    url: str
    pids: list[int]

    def usage(self) -> Usage: ...


class Local:
    """A server that was started here."""

    def __init__(self, name: str, url: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
        self.name, self.url = name, url
        self.process = process
        self.pids = process_usage.tree(process.pid)
        self._log = log

    def usage(self) -> Usage:
        return process_usage.usage(self.pids)

    def log_size(self) -> int:
        """The number of bytes that it has written to its log."""
        return os.fstat(self._log.fileno()).st_size

    def log_text(self) -> str:
        """All that it has written to its log."""
        return _said(self._log)


class Remote:
    """A server that is already running. Its usage is known if its /metrics report it, as this service's do."""

    def __init__(self, url: str, path: str) -> None:
        self.name, self.url = SERVICE, url.rstrip("/") + path
        self.pids: list[int] = []
        self._root = url.rstrip("/")

    def usage(self) -> Usage:
        try:
            status, body = get(f"{self._root}/metrics")
        except OSError:
            return process_usage.UNKNOWN
        if status != 200:
            return process_usage.UNKNOWN
        cpu, memory = (_sample(body.decode(errors="replace"), f"process_{name}") for name in _METRICS)
        return Usage(cpu, None if memory is None else int(memory))


_METRICS = ("cpu_seconds_total", "resident_memory_bytes")


@contextlib.contextmanager
def own_service(
    folder: Path,
    prefix: Sequence[str] = (),
    settings: Mapping[str, str] = NO_SETTINGS,
    program: Sequence[str] = ("-m", "service"),
) -> Iterator[Local]:
    """This service with no other model than the one in `folder`, on a free port, while the context lasts.

    prefix: words to put before its command, such as those that lower a limit;  settings: further variables;
    program: what Python runs, for a program that starts the service itself.
    """
    with tempfile.TemporaryDirectory() as store:
        link = Path(store) / folder.parent.name / folder.name
        link.parent.mkdir()
        link.symlink_to(folder.absolute())
        environment = {"HOST": "127.0.0.1", "PORT": "0", "MODEL_STORE": store, **settings}
        command = [*prefix, sys.executable, *program]
        with _running(command, environment, r"^serving .* on (http://\S+)", 1) as (url, process, log):
            yield Local(SERVICE, f"{url}/detect", process, log)


@contextlib.contextmanager
def plain_server(folder: Path, workers: int) -> Iterator[Local]:
    """The plain server with `workers` processes. Its access log is off, which can only make it faster."""
    command = [sys.executable, "-m", "uvicorn", PLAIN_APP, "--port", "0", "--no-access-log"]
    command += ["--workers", str(workers)] if workers > 1 else []
    environment = {"MODEL_DIR": str(folder), "PYTHONPATH": os.pathsep.join((str(ROOT / "scripts"), str(ROOT)))}
    ready = r"running on (http://[\w.:]+)", r"Application startup complete"
    with _running(command, environment, ready[0], workers, ready[1]) as (url, process, log):
        yield Local(f"plain, {workers} worker{'s' if workers > 1 else ''}", f"{url}/detect", process, log)


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], announces: str, times: int, complete: str | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes], IO[str]]]:
    """Starts a server, and yields its address, process and log while the context lasts. Its children end with it.

    announces: matches the line with the address;  complete: matches the line that appears `times` when all is ready.
    Raises Failed if the server ends or takes too long.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield _address(process, log, announces, complete or announces, times), process, log
        finally:
            family = process_usage.tree(process.pid)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process_usage.wait(family, STOP)


def _address(process: subprocess.Popen[bytes], log: IO[str], announces: str, complete: str, times: int) -> str:
    deadline = time.monotonic() + START_UP
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        said = _said(log)
        found = re.search(announces, said, re.MULTILINE)
        if found and len(re.findall(complete, said, re.MULTILINE)) >= times:
            return found[1]
        if ended:
            break
        time.sleep(0.05)
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it printed nothing")
    raise Failed(f"{process.args!r} does not start; its last line is: {last}")


def _said(log: IO[str]) -> str:
    """The text of a log. The server writes at the same offset of the file, which seek() would move."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def get(url: str) -> tuple[int, bytes]:
    """Status and body. Raises OSError if no server answers."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"{url} does not answer as a web server does") from error
    finally:
        connection.close()


def _sample(text: str, name: str) -> float | None:
    """The value of a metric without labels in Prometheus's text format."""
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    return float(found[1]) if found else None
