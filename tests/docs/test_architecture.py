"""docs/architecture.md: its tables name the files that a real request enters, and the order of its steps."""

import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.http.connections import Connection
from service.http.http1 import Http1
from service.server import Lifecycle
from service.settings import Settings
from service.sockets import listen

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
EXAMPLE = ROOT / "model_store" / "shapes" / "1" / "example.jpg"


def tables(heading: str) -> tuple[list[tuple[str, str]], set[str]]:
    """(file, function) of the numbered table below a heading, in order, and the files of the table that follows."""
    section = PAGE[PAGE.index(f"## {heading}") :].split("\n## ")[0]
    steps = re.findall(r"^\| \d+ \| `([\w/.]+)` \| `([\w.]+)`", section, re.MULTILINE)
    others = [line for line in section.splitlines() if line.startswith("| `")]
    return steps, {file for line in others for file in re.findall(r"`([\w/]+\.py)`", line.split("|")[1])}


class Recorder:
    """The calls of functions in `service/` while it was on: (file, function), in the order of each first call."""

    def __init__(self) -> None:
        self.on = False
        self.calls: dict[tuple[str, str], None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self.on and event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT / "service"):
                self.calls.setdefault((str(path.relative_to(ROOT)), frame.f_code.co_qualname))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Profiles this thread, and every thread that is started from now on."""
    recorder = Recorder()
    before = sys.getprofile()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    yield recorder
    sys.setprofile(before)
    threading.setprofile(None)  # type: ignore[arg-type]  # which the documentation allows


def test_a_request_passes_the_functions_of_the_table_in_its_order(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "1").symlink_to(EXAMPLE.parent)
    settings = Settings(model_store=tmp_path, model_poll_seconds=0, shutdown_grace=0)

    async def scenario() -> httpx.Response:
        app = create_app(settings)
        protocol = partial(Connection, app.state.traffic)
        server = uvicorn.Server(uvicorn.Config(Http1(app), http=protocol, ws="none", log_config=None))
        sockets = listen("127.0.0.1", 0)
        running = asyncio.create_task(Lifecycle(server, app.state.runtime, sockets).run())
        host, port = sockets[0].getsockname()
        while app.state.runtime.readiness.not_ready():
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            recorder.on = True
            response = await client.post("/detect", files={"image": EXAMPLE.read_bytes()})
            recorder.on = False
        server.should_exit = True
        await running
        return response

    response = asyncio.run(scenario())
    assert response.status_code == 200
    assert response.json()["labels"]
    steps, helpers = tables("The way of a request")
    assert len(steps) == 8
    assert [call for call in recorder.calls if call in steps] == steps
    files = {file for file, _ in recorder.calls} - {
        "service/server.py",
        "service/telemetry/logs.py",
        "service/telemetry/metrics.py",  # the announcement; figures
        "service/http/traffic.py",
        "service/http/unsent_responses.py",  # both are entered every second
    }
    assert files - {file for file, _ in steps} == helpers


def test_every_file_that_the_page_names_exists() -> None:
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        places = (ROOT / name, ROOT / "service" / name, ROOT / "scripts" / "faster_rcnn" / name)
        assert any(place.exists() for place in places), name
