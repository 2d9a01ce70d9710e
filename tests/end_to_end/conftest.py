"""A real server: `python -m service` in its own process, with requests over a real socket."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
# Only the embedded model, so that the tests are the same if other models have been published.
_ALONE = tempfile.TemporaryDirectory(prefix="model-store-")
STORE = Path(os.environ.get("MODEL_STORE", _ALONE.name))
(Path(_ALONE.name) / "shapes").mkdir()
(Path(_ALONE.name) / "shapes" / "1").symlink_to(ROOT / "model_store" / "shapes" / "1")


class Server:
    """A running service. `http` is a client for it; `lines` holds the lines that it has printed so far."""

    def __init__(self, program: Sequence[str] = ("-m", "service"), **settings: object) -> None:
        environment = os.environ | {"MODEL_STORE": str(STORE), "HOST": "127.0.0.1", "PORT": "0", "SHUTDOWN_GRACE": "0"}
        environment |= {name: str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, *program],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._announced = threading.Event()
        self.url = ""
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"^serving .* on (http://\S+)", line):
                self.url = found[1]
                self._announced.set()
        self._announced.set()

    def ready(self) -> Server:
        assert self._announced.wait(60), "not ready in 60 s"
        assert self.url, "".join(self.lines)
        self.http = httpx.Client(base_url=self.url, timeout=60)
        return self

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port
        return url.host, url.port

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.http.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        deadline = time.monotonic() + 10
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The service with the embedded model and its default settings."""
    running = Server().ready()
    yield running
    assert running.stop() == 0


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts further services with other settings."""
    running: list[Server] = []

    def start(*program: Sequence[str], **settings: object) -> Server:
        running.append(Server(*program, **settings))
        return running[-1]

    yield start
    for each in running:
        each.stop(signal.SIGKILL)


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured shapes on a plain background, which the embedded model detects."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(rng.integers(180, 250, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(3):
        r = int(min(width, height) * rng.uniform(0.1, 0.2))
        x, y = int(rng.uniform(r, width - r)), int(rng.uniform(r, height - r))
        fill = tuple(rng.integers(0, 150, 3).tolist())
        if rng.random() < 0.5:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        else:
            pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    return image


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def distinct(data: bytes, number: int) -> bytes:
    """The same image in different bytes, because the service runs identical uploads in flight only once."""
    return data + b"\0%d" % number


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def answer(response: httpx.Response) -> dict[str, Any]:
    """The document of a response with status 200, without the members that differ between calls."""
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    document.pop("timing")
    return document


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of an error, after checks that it follows RFC 9457 and exposes no internal details."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    for word in ("0x", "BytesIO", "Traceback", "onnxruntime", "/site-packages"):
        assert word not in response.text
    return document
