"""Real replicas of the service on addresses of this machine, behind a real HAProxy with the shipped configuration.

dnsmasq plays the name server, which in Docker and in Kubernetes names the addresses of all replicas.
"""

import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.workers import Failed

ROOT = Path(__file__).resolve().parents[3]
CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
ADDRESSES = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
PACKAGES = {"haproxy": "haproxy", "dnsmasq": "dnsmasq-base"}  # the programs, and the Debian package of each
START_UP = 180.0  # seconds until all replicas are ready


class Balancer:
    """HAProxy before the replicas at `addresses`.  url: where clients connect;  status: its own page and metrics."""

    def __init__(self, addresses: Sequence[str], port: int, log: Path, configuration: Path = CONFIGURATION) -> None:
        names, listen, status = (free_port("127.0.0.1") for _ in range(3))
        self.url, self.status = f"http://127.0.0.1:{listen}", f"http://127.0.0.1:{status}"
        self._log = log.open("wb")
        dns = ["dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", f"--port={names}"]
        dns += ["--listen-address=127.0.0.1", "--bind-interfaces"]
        dns += [f"--host-record=replica,{address}" for address in addresses]
        environment = os.environ | {
            "REPLICAS": f"replica:{port}",
            "LISTEN": f"127.0.0.1:{listen}",
            "STATUS": f"127.0.0.1:{status}",
            "DNS": f"127.0.0.1:{names}",
        }
        self._processes = [
            subprocess.Popen(dns, stdout=self._log, stderr=self._log),
            subprocess.Popen(
                ["haproxy", "-f", str(configuration)], env=environment, stdout=self._log, stderr=self._log
            ),
        ]

    def up(self) -> set[str]:
        """The addresses of the replicas to which HAProxy sends requests."""
        try:
            with urllib.request.urlopen(f"{self.status}/;csv", timeout=5) as answer:
                rows = csv.DictReader(answer.read().decode().removeprefix("# ").splitlines())
        except OSError:  # it has not opened its port yet
            return set()
        return {
            row["addr"].split(":")[0]
            for row in rows
            if row["svname"].startswith("replica") and row["status"].startswith("UP")  # "UP 1/2": one check has failed
        }

    def wait_until_up(self, addresses: Iterable[str]) -> None:
        """Waits until HAProxy sends requests to exactly these replicas. Raises Failed after START_UP."""
        deadline = time.monotonic() + START_UP
        while (up := self.up()) != set(addresses):
            if time.monotonic() > deadline:
                raise Failed(f"of the replicas at {sorted(addresses)}, only {sorted(up)} are ready")
            time.sleep(0.05)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()


class Replicas:
    """The services, each with a model store of its own in `folder`, which begins with the version in `model`."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder = folder
        self.port = free_port(*ADDRESSES)
        self.stores = {address: folder / address for address in ADDRESSES}
        for store in self.stores.values():
            link = store / model.parent.name / model.name
            link.parent.mkdir(parents=True)
            link.symlink_to(model.resolve())
        self.processes = {address: self.start(address) for address in ADDRESSES}

    def start(self, address: str) -> subprocess.Popen[bytes]:
        """Starts the replica at `address`, with one core, so that three of them compete as little as possible."""
        environment = os.environ | {
            "HOST": address, "PORT": str(self.port), "MODEL_STORE": str(self.stores[address]),
            "TRUSTED_PROXIES": "127.0.0.1", "SHUTDOWN_GRACE": "4", "ENGINE_THREADS": "1", "ENGINE_WORKERS": "1",
            "MODEL_POLL_SECONDS": "0.5",
        }  # fmt: skip
        log = (self._folder / f"{address}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "service"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def url(self, address: str) -> str:
        return f"http://{address}:{self.port}/detect"

    def send(self, address: str, number: signal.Signals) -> None:
        self.processes[address].send_signal(number)

    def restart(self, address: str) -> None:
        self.processes[address].wait(START_UP)
        self.processes[address] = self.start(address)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextlib.contextmanager
def fleet(folder: Path, model: Path) -> Iterator[tuple[Replicas, Balancer]]:
    """Three replicas that are ready, and the balancer before them. Raises Failed if a program is missing."""
    if missing := missing_packages():
        raise Failed(f"not installed (Debian packages): {', '.join(missing)}")
    replicas = Replicas(folder, model)
    try:
        balancer = Balancer(ADDRESSES, replicas.port, folder / "haproxy.log")
        try:
            balancer.wait_until_up(ADDRESSES)
            yield replicas, balancer
        finally:
            balancer.close()
    finally:
        replicas.close()


def missing_packages() -> list[str]:
    return [package for program, package in PACKAGES.items() if shutil.which(program) is None]


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
