"""Three real services behind a real HAProxy with the shipped configuration, on addresses of this machine.

dnsmasq plays the name server, which in Docker and in Kubernetes names the addresses of all replicas.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import STORE, Server

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
ADDRESSES = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]
PROGRAMS = {"haproxy": "haproxy", "dnsmasq": "dnsmasq-base"}  # and the Debian package of each


class Fleet:
    """Replicas of the service behind HAProxy.  url: where clients connect;  replicas: by their address."""

    def __init__(self, folder: Path, store: Path = STORE, **settings: object) -> None:
        self.store, self.settings = store, settings
        self.port = free_port(*ADDRESSES)
        self.replicas = {address: self.start(address) for address in ADDRESSES}
        names, listen, status = (free_port("127.0.0.1") for _ in range(3))
        self._log = (folder / "haproxy.log").open("wb")
        dns = ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", f"--port={names}"]
        dns += ["--listen-address=127.0.0.1", "--bind-interfaces"]
        dns += [f"--host-record=replica,{address}" for address in ADDRESSES]
        environment = os.environ | {
            "REPLICAS": f"replica:{self.port}",
            "LISTEN": f"127.0.0.1:{listen}",
            "STATUS": f"127.0.0.1:{status}",
            "DNS": f"127.0.0.1:{names}",
        }
        self._helpers = [
            subprocess.Popen(dns, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
            subprocess.Popen(
                ["haproxy", "-f", str(CONFIGURATION)], env=environment, stdout=self._log, stderr=self._log
            ),
        ]
        self.url = f"http://127.0.0.1:{listen}"
        self.status = f"http://127.0.0.1:{status}"

    def ready(self) -> Fleet:
        for replica in self.replicas.values():
            replica.ready()
        self.wait_until_up(ADDRESSES)
        return self

    def wait_until_up(self, addresses: Iterable[str]) -> None:
        """Waits until HAProxy sends requests to exactly these replicas. They may first have to load their models."""
        deadline = time.monotonic() + 120
        while (up := self.up()) != set(addresses):
            assert time.monotonic() < deadline, f"only {up} are ready"
            time.sleep(0.1)

    def start(self, address: str) -> Server:
        defaults: dict[str, object] = {
            "HOST": address, "PORT": self.port, "MODEL_STORE": self.store, "TRUSTED_PROXIES": "127.0.0.1",
            "SHUTDOWN_GRACE": 4, "ENGINE_THREADS": 1, "ENGINE_WORKERS": 1, "MODEL_POLL_SECONDS": 0.5,
        }  # fmt: skip
        return Server(**(defaults | self.settings))

    def up(self) -> set[str]:
        """The addresses of the replicas to which HAProxy sends requests."""
        try:
            lines = httpx.get(f"{self.status}/;csv").text.splitlines()
        except httpx.HTTPError:  # it has not opened its port yet
            return set()
        columns = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[1:]]
        return {
            row["addr"].split(":")[0] for row in rows if row["svname"].startswith("replica") and row["status"] == "UP"
        }

    def stop(self) -> None:
        for helper in self._helpers:
            helper.kill()
            helper.wait()
        for replica in self.replicas.values():
            replica.stop(signal.SIGKILL)
        self._log.close()


def free_port(*addresses: str) -> int:
    """A port that is free on all `addresses`."""
    while True:
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            if all(_is_free(address, port) for address in addresses[1:]):
                return port


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as other:
        try:
            other.bind((address, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def running_fleet(*arguments: Any, **settings: object) -> Iterator[Fleet]:
    """Skips the test where a program is missing."""
    if missing := [package for program, package in PROGRAMS.items() if shutil.which(program) is None]:
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
