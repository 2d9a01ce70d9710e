"""What all connections of a server share: the limits on connections, uploads in progress and unsent responses."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from service.http.deadlines import Deadlines
from service.http.open_connections import OpenConnections
from service.http.problems import Problem
from service.http.unsent_responses import UnsentResponses
from service.http.uploads_in_progress import UploadsInProgress
from service.queue.memory import MemoryBudget
from service.telemetry.limited_log import LimitedLog
from service.telemetry.metrics import Metrics

CHECK_SECONDS = 1.0
# Bytes that are read from a connection at a time: of a body, and of anything else.
LARGE_READ = 2**18
SMALL_READ = 2**13

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """The settings of the same names, and the most bytes of responses that their clients have not received."""

    max_connections: int = 4096
    max_uploads: int = 64
    max_uploads_per_client: int = 32
    min_transfer_rate: float = 1000.0
    receive_timeout: float = 20.0
    unsent_bytes: int = 2**24


class Traffic:
    """The open connections of one server, and what they may occupy together."""

    def __init__(
        self, limits: Limits, metrics: Metrics, memory: MemoryBudget, deadlines: Deadlines | None = None
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self._memory = memory
        self.deadlines = deadlines or Deadlines(body=limits.receive_timeout, min_rate=limits.min_transfer_rate)
        self.log = LimitedLog(log)
        self.large_buffer = memoryview(bytearray(LARGE_READ))
        self.small_buffer = memoryview(bytearray(SMALL_READ))
        self.responses = UnsentResponses(limits.unsent_bytes, memory)
        self.uploads = UploadsInProgress(
            limits.max_uploads,
            limits.max_uploads_per_client,
            memory,
            limits.min_transfer_rate,
            self.closed,
        )
        self.connections = OpenConnections(
            limits.max_connections, lambda: self.uploads.end_slowest() or self.responses.drop_slowest()
        )
        metrics.connections.set_function(lambda: len(self.connections))
        metrics.uploads_in_progress.set_function(lambda: len(self.uploads))
        metrics.upload_memory.set_function(lambda: self.uploads.bytes)
        metrics.unsent_bytes.set_function(lambda: self.responses.bytes)

    async def watch(self) -> None:
        """Enforces the limits that depend on time, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.connections.check()
            self.uploads.check()
            self.responses.check()

    def refused(self, problem: Problem) -> None:
        """Counts and logs bytes that are not valid HTTP."""
        self.metrics.rejected.labels(problem.reason).inc()
        self.log.warning(problem.reason, f"a client's bytes were refused: {problem.detail}")

    def closed(self, reason: str) -> None:
        """Counts a connection that is closed because of a limit, and logs the limit."""
        self.metrics.connections_closed.labels(reason).inc()
        limits = self.limits
        message = {
            "connection_limit": f"there are {limits.max_connections} connections, the most that MAX_CONNECTIONS or the "
            "limit on file descriptors allows; for each new one, the longest idle one is closed. "
            "Raise the limit (ulimit -n) if the clients are well-behaved",
            "evicted_upload": f"all {limits.max_uploads} places for uploads (MAX_UPLOADS), or all "
            f"{limits.max_uploads_per_client} of one client (MAX_UPLOADS_PER_CLIENT), are taken; "
            "the slowest upload was ended for a faster one",
            "upload_memory": f"uploads and responses occupy {self._memory.held_limit:,} bytes, the most that they may "
            "(a share of MEMORY_BUDGET); the slowest upload was ended",
            "slow_upload": f"an upload was ended because it was slower than {limits.min_transfer_rate:g} bytes per "
            "second (MIN_TRANSFER_RATE)",
            "slow_reader": "a client was disconnected because it read its response more slowly than "
            f"{limits.min_transfer_rate:g} bytes per second (MIN_TRANSFER_RATE)",
            "evicted_reader": "the slowest reader of a response was disconnected, because its place (MAX_IN_FLIGHT) or "
            f"its share of the {limits.unsent_bytes:,} bytes for unsent responses was needed",
        }.get(reason)
        if message:
            self.log.warning(reason, message)
