"""The service on a socket, until SIGTERM or SIGINT: uvicorn, started and stopped as a supervisor expects."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from service.app import create_app
from service.http.connections import Connection
from service.runtime import Runtime
from service.settings import Settings
from service.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

KEEP_ALIVE_SECONDS = 75  # longer than the 60 s of common load balancers, which otherwise meet closed connections

FAILED_SECONDS = 2  # for answers to leave when no engine works any more: what hangs in a dead one never comes


class Server(uvicorn.Server):
    """uvicorn, but it exits with 0 after SIGTERM, says when it is ready, and ends when nothing can be answered."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._announced = False
        self._asked_to_stop: float | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again once it has shut down, and so exits with 143.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._runtime.drain()
        if sig == signal.SIGTERM and self._asked_to_stop is None and self._announced:
            self._asked_to_stop = time.monotonic()  # `on_tick` stops it once the grace is over
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if not self._announced and self._runtime.not_ready() is None:
            self._announced = True
            self._announce()
        grace = self._runtime.settings.shutdown_grace
        if self._asked_to_stop is not None and time.monotonic() - self._asked_to_stop >= grace:
            return True
        if self._runtime.failure is not None:
            self.config.timeout_graceful_shutdown = FAILED_SECONDS
            return True
        return await super().on_tick(counter)

    def _announce(self) -> None:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        models = ", ".join(f"{name}/{version}" for name, all in self._runtime.models.items() for version in all)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"serving {models} on http://{address} ({self._runtime.provider})", flush=True)


def serve(settings: Settings, traces: TracerProvider | None = None) -> int:
    """Serves until SIGTERM or SIGINT. Returns the process's exit code: 1 if the service failed for good, else 0."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    app = create_app(settings)
    config = uvicorn.Config(
        tracing.Traced(app, traces) if traces else app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="info" if settings.access_log else "warning",
        access_log=settings.access_log,
        http=Connection,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
    runtime: Runtime = app.state.runtime
    Server(config, runtime).run()
    return 1 if runtime.failure else 0
