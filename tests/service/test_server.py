"""The server: its sockets, readiness, signals, and its use of uvicorn."""

import ast
import asyncio
import contextlib
import logging
import signal
from functools import partial
from pathlib import Path

import httpx
import pytest
import uvicorn

import service
from service.app import create_app
from service.http.connections import Connection
from service.http.http1 import Http1
from service.server import Lifecycle
from service.settings import Settings
from service.sockets import listen
from tests.service import graphs

SOON = 30  # seconds; limits how long a test waits


@pytest.fixture
def settings(tmp_path):
    """Creates settings for a store with one small model."""
    graphs.publish(tmp_path)
    return lambda **changes: Settings(model_store=tmp_path, model_poll_seconds=0, **changes)


@pytest.fixture(autouse=True)
def process_wide_state():
    """Restores the signal handlers and the log level, which the server sets for the rest of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level, handlers = logging.root.level, logging.root.handlers[:]
    yield
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers
    for number, handler in before.items():
        signal.signal(number, handler)


class Running:
    """A server that runs in this process as `task`."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        config = uvicorn.Config(
            Http1(app), http=partial(Connection, app.state.traffic), ws="none", lifespan="on", log_config=None
        )
        sockets = listen("127.0.0.1", 0)
        host, port = sockets[0].getsockname()
        self.runtime = app.state.runtime
        self.client = httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=SOON)
        self.task = asyncio.create_task(Lifecycle(uvicorn.Server(config), app.state.runtime, sockets).run())

    async def __aenter__(self) -> "Running":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await asyncio.wait_for(self.task, SOON)

    async def announced(self, capsys) -> None:
        async with asyncio.timeout(SOON):
            while "serving plain/1 on" not in capsys.readouterr().out:
                await asyncio.sleep(0.01)


def test_an_engine_that_died_makes_the_service_unready_and_ends_it(settings, capsys):
    async def scenario() -> None:
        async with Running(settings()) as server:
            await server.announced(capsys)
            server.runtime.readiness.fail("the engine fails on every image")
            error = server.runtime.readiness.not_ready()
            assert error.reason == "failed"

    asyncio.run(scenario())


def test_after_sigterm_the_service_is_unready_at_once_but_answers_until_the_grace_is_over(settings, capsys):
    async def scenario() -> None:
        async with Running(settings(shutdown_grace=1)) as server:
            await server.announced(capsys)
            assert "connection" not in (await server.client.get("/readyz")).headers
            signal.raise_signal(signal.SIGTERM)
            ready = await server.client.get("/readyz")
            assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
            assert ready.headers["connection"] == "close"
            assert server.runtime.readiness.cannot_answer() is None
            assert not server.task.done()

    asyncio.run(scenario())


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_sigint_or_a_second_sigterm_skips_the_grace(settings, capsys, signals):
    async def scenario() -> None:
        async with Running(settings(shutdown_grace=3600)) as server:
            await server.announced(capsys)
            for number in signals:
                signal.raise_signal(number)

    asyncio.run(scenario())


def test_a_second_interrupt_drops_the_requests_in_flight(settings, capsys):
    async def scenario() -> None:
        async with Running(settings(receive_timeout=3600)) as server:
            await server.announced(capsys)
            url = server.client.base_url
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
            while "detector_uploads_in_progress 1.0" not in (await server.client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            await asyncio.wait_for(server.task, SOON)
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("started", [False, True], ids=["before the server runs", "while the models load"])
def test_a_signal_before_the_service_is_ready_ends_it(settings, number, started):
    async def scenario() -> None:
        async with Running(settings(shutdown_grace=3600)) as server:
            server.runtime.start = asyncio.Event().wait  # loads for ever
            await asyncio.sleep(0)  # after one step, the handlers are installed
            if started:
                with contextlib.suppress(httpx.TransportError):
                    await server.client.get("/healthz")
            signal.raise_signal(number)

    asyncio.run(scenario())


def test_the_service_uses_only_public_names_of_uvicorn():
    """As long as none of these names is private, the version of uvicorn needs no upper bound."""
    used = set()
    for path in Path(service.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvicorn"):
                used |= {f"{node.module}.{each.name}" for each in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "uvicorn":
                used.add(f"uvicorn.{node.attr}")
    assert used == {
        "uvicorn.Config",
        "uvicorn.Server",
        "uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware",
        "uvicorn.protocols.http.h11_impl.H11Protocol",
    }
