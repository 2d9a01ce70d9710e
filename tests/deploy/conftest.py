"""Three real services behind a real HAProxy with the shipped configuration, on addresses of this machine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet.replicas import ADDRESSES, Balancer, free_port, missing_packages
from tests.end_to_end.conftest import STORE, Server


class Fleet:
    """Replicas of the service behind HAProxy.  url: where clients connect;  replicas: by their address."""

    def __init__(self, folder: Path, store: Path = STORE, **settings: object) -> None:
        self.store, self.settings = store, settings
        self.port = free_port(*ADDRESSES)
        self.replicas = {address: self.start(address) for address in ADDRESSES}
        self.balancer = Balancer(ADDRESSES, self.port, folder / "haproxy.log")
        self.url, self.status = self.balancer.url, self.balancer.status

    def start(self, address: str) -> Server:
        defaults: dict[str, object] = {
            "HOST": address, "PORT": self.port, "MODEL_STORE": self.store, "TRUSTED_PROXIES": "127.0.0.1",
            "SHUTDOWN_GRACE": 4, "ENGINE_THREADS": 1, "ENGINE_WORKERS": 1, "MODEL_POLL_SECONDS": 0.5,
        }  # fmt: skip
        return Server(**(defaults | self.settings))

    def ready(self) -> Fleet:
        for replica in self.replicas.values():
            replica.ready()
        self.balancer.wait_until_up(ADDRESSES)
        return self

    def stop(self) -> None:
        self.balancer.close()
        for replica in self.replicas.values():
            replica.stop(signal.SIGKILL)


@contextlib.contextmanager
def running_fleet(*arguments: Any, **settings: object) -> Iterator[Fleet]:
    """Skips the test where a program is missing."""
    if missing := missing_packages():
        pytest.skip(f"not installed (Debian packages): {', '.join(missing)}")
    fleet = Fleet(*arguments, **settings)
    try:
        yield fleet.ready()
    finally:
        fleet.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running
