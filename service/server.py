"""Runs the service on a socket until SIGTERM or SIGINT, with uvicorn as the HTTP server."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn

from service.app import create_app
from service.http.connections import Connection
from service.http.http1 import Http1
from service.http.refusals import MAX_HEAD
from service.runtime import Runtime
from service.settings import UNIX, Settings
from service.sockets import Sockets
from service.telemetry import logs, tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FAILED_SECONDS = 2  # to send responses after a fatal engine failure; requests inside the engine never finish
TICK_SECONDS = 0.1


def serve(settings: Settings, sockets: Sockets, traces: TracerProvider | None = None) -> int:
    """Serves on `sockets` until SIGTERM or SIGINT.

    Returns the process's exit code: 1 if the service failed for good, else 0.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        Http1(tracing.Traced(app, traces) if traces else app),
        log_config=None,
        log_level="error",  # its warnings are about what clients send; `Traffic` counts and limits those
        access_log=False,  # service.http.middleware writes its own, with the name of the key
        http=cast("type[asyncio.Protocol]", partial(Connection, app.state.traffic)),
        h11_max_incomplete_event_size=2 * MAX_HEAD,  # `Connection` passes only complete heads, and limits them itself
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),
        # Only what connects to UDS has no address, and uvicorn has no other word for it.
        forwarded_allow_ips="*" if settings.uds and UNIX in settings.trusted_proxies else settings.trusted_proxies,
        server_header=False,
        timeout_keep_alive=math.ceil(app.state.traffic.deadlines.idle),
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
    runtime: Runtime = app.state.runtime
    if sockets.metrics:
        runtime.metrics_port = sockets.metrics[0].getsockname()[1]
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(Lifecycle(uvicorn.Server(config), runtime, [*sockets.service, *sockets.metrics]).run())
    return 1 if runtime.readiness.failure else 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of uvloop's event loops if it is installed, else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class Lifecycle:
    """One run of `server` on `sockets`, from the first signal handler to the last answer.

    It announces the service when it is ready. SIGTERM turns /readyz to 503 at once and stops the server after
    SHUTDOWN_GRACE. SIGINT, a second SIGTERM, or a SIGTERM before the service is ready skips this grace period. A second
    SIGINT also drops the requests in flight. The server also stops when the service has failed for good.

    After it has stopped, uvicorn raises again the signals that its own handlers caught. After SIGTERM the process would
    then end with exit code 143, so this class replaces the handlers as soon as uvicorn runs.
    """

    def __init__(self, server: uvicorn.Server, runtime: Runtime, sockets: list[socket.socket]) -> None:
        self._server = server
        self._runtime = runtime
        self._sockets = sockets
        self._announced = False
        self._stops_at = math.inf

    async def run(self) -> None:
        address = self._sockets[0].getsockname()
        self._handle_signals()  # for signals that arrive before uvicorn has installed its own handlers
        serving = asyncio.create_task(self._server.serve(self._sockets))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.01)
        self._handle_signals()
        while not serving.done():
            self._check(address)
            await asyncio.wait([serving], timeout=TICK_SECONDS)
        await serving

    def _handle_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._runtime.readiness.drain()
        if number == signal.SIGTERM and self._announced and self._stops_at == math.inf:
            self._stops_at = time.monotonic() + self._runtime.settings.shutdown_grace
        elif number == signal.SIGINT and self._server.should_exit:
            self._server.force_exit = True
        else:
            self._server.should_exit = True

    def _check(self, address: tuple[str, int] | str) -> None:
        if not self._announced and self._runtime.readiness.not_ready() is None:
            self._announced = True
            self._announce(address)
        if self._runtime.readiness.failure is not None:
            self._server.config.timeout_graceful_shutdown = FAILED_SECONDS
            self._server.should_exit = True
        if time.monotonic() >= self._stops_at:
            self._server.should_exit = True

    def _announce(self, address: tuple[str, int] | str) -> None:
        models = ", ".join(
            f"{name}/{version}" for name, all in self._runtime.readiness.choices.served.items() for version in all
        )
        settings = self._runtime.settings
        if isinstance(address, str):  # of a Unix socket
            host, place = settings.host, f"unix:{settings.uds}"
        else:
            host = address[0]
            place = f"http://{_bracketed(host)}:{address[1]}"
        logs.announce(f"serving {models} on {place} ({self._runtime.provider})")
        if self._runtime.metrics_port is not None:
            logs.announce(f"metrics alone on http://{_bracketed(host)}:{self._runtime.metrics_port}/metrics")


def _bracketed(host: str) -> str:
    """A host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host
