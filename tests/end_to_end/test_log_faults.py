"""Standard output and standard error that cannot be written do not stop the service and do not change its exit code."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.end_to_end.conftest import ROOT, encoded, eventually
from tests.service import graphs

SOON = 30  # seconds; limits how long a test waits
GREY = encoded(Image.new("RGB", (96, 32), (102, 102, 102)))

REASONS = {"full": "no space left on device", "closed": "it is closed", "broken": "broken pipe"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    graphs.publish(store)
    return store


@contextlib.contextmanager
def serving(store, output, errors):
    """A service with these streams, each "full", "closed", "broken" (nobody reads it) or "kept"; and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"MODEL_STORE": str(store), "PORT": str(port), "ACCESS_LOG": "1", "SHUTDOWN_GRACE": "0"}
    closing = "".join(f" {stream}>&-" for stream, kind in ((1, output), (2, errors)) if kind == "closed")
    with contextlib.ExitStack() as opened:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {sys.executable} -m service{closing}"],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=stream_of(output, opened),
            stderr=stream_of(errors, opened),
            text=True,
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def stream_of(kind, opened):
    if kind == "full":
        return opened.enter_context(Path("/dev/full").open("w"))
    if kind == "broken":
        reading, writing = os.pipe()
        os.close(reading)
        return opened.enter_context(os.fdopen(writing, "w"))
    return subprocess.PIPE if kind == "kept" else None


def answers(process, url):
    """Waits until the service is ready, then checks that it detects."""
    deadline = time.monotonic() + SOON
    while True:
        assert process.poll() is None, f"the process has ended with {process.returncode}"
        assert time.monotonic() < deadline
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                break
        time.sleep(0.05)
    for _ in range(3):
        assert httpx.post(f"{url}/detect", content=GREY).status_code == 200


@pytest.mark.contract("7.6")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")
@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("stream", [1, 2], ids=["output", "errors"])
def test_one_stream_that_cannot_be_written_is_reported_once_on_the_other(store, stream, fault):
    streams = {1: (fault, "kept"), 2: ("kept", fault)}[stream]
    with serving(store, *streams) as (process, url):
        kept = process.stderr if stream == 1 else process.stdout
        lines = []

        def read() -> None:
            for line in kept:
                lines.append(line)  # noqa: PERF402  at once, so that the test can wait for it

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        answers(process, url)
        eventually(
            lambda: any("serving plain/1" in line for line in lines)
        )  # the service announces itself a little later
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0
        reader.join(SOON)
        text = "".join(lines)
    name = {1: "standard output", 2: "standard error"}[stream]
    (said,) = [line for line in text.splitlines() if "cannot be written" in line]
    assert f"{name} cannot be written ({REASONS[fault]})" in said
    assert f"serving plain/1 on {url}" in text


@pytest.mark.contract("7.6")
@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and a POSIX shell")
@pytest.mark.parametrize("fault", REASONS)
def test_a_service_without_any_stream_serves_and_ends_well(store, fault):
    with serving(store, fault, fault) as (process, url):
        answers(process, url)
        lost = re.search(r"^detector_log_lines_lost (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        assert float(lost[1]) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0


@pytest.mark.contract("7.6")
def test_readers_that_leave_while_the_service_runs_change_nothing(store):
    with serving(store, "kept", "kept") as (process, url):
        answers(process, url)
        process.stdout.close()
        process.stderr.close()
        answers(process, url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0


@pytest.mark.contract("7.6")
@pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe differs")
def test_a_reader_of_the_log_that_has_stopped_reading_stops_nothing(store):
    with serving(store, "kept", "kept") as (process, url):
        answers(process, url)
        path = "/" + "x" * 190
        with httpx.Client(base_url=url) as client:
            for _ in range(600):  # 600 lines of more than 200 bytes are more than the 64 kB of the pipe
                assert client.get(path).status_code == 404
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        ended = threading.Timer(SOON, process.kill)
        ended.start()
        assert process.wait() == 0
        ended.cancel()
