"""The sockets on which the service listens, and what to do if it cannot."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

from service.settings import Settings

# Bytes that the system receives for a connection before the service reads them. Otherwise it would take up to 6 MB, and
# a thousand unread uploads would use up the memory that the system has for TCP, which all connections share.
RECEIVE_BUFFER = 2**18
REMEDY = "set 127.0.0.1 for this machine only, 0.0.0.0 for every interface, or an address of this machine"


class Sockets(NamedTuple):
    """The listening sockets of PORT and, if it is set, of METRICS_PORT."""

    service: list[socket.socket]
    metrics: list[socket.socket]


class ListenError(Exception):
    """The service cannot listen; the message names the setting, its value and the remedy."""


def open_sockets(settings: Settings) -> Sockets:
    """Listens on HOST. Raises ListenError."""
    service = listen(settings.host, settings.port)
    if settings.metrics_port is None:
        return Sockets(service, [])
    return Sockets(service, listen(settings.host, settings.metrics_port, "METRICS_PORT"))


def listen(host: str, port: int, port_setting: str = "PORT") -> list[socket.socket]:
    """Opens a listening socket for each address of `host`, all with the same port. Raises ListenError."""
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, address in _addresses(host, port):
            if sockets and not port:  # the first socket has chosen the port
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sockets.append(opened.enter_context(_create(family, address)))
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # raised if IPv6 is switched off
                    raise ListenError(_words(error, host, port, port_setting)) from error
        if not sockets:
            raise ListenError(f"HOST={host!r}: this machine does not support the kind of this address; {REMEDY}")
        opened.pop_all()
        return sockets


def _create(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    created = socket.create_server(address, family=family)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)  # its connections inherit it
    return created


def public_addresses(sockets: Iterable[socket.socket]) -> list[str]:
    """The addresses of `sockets` that other machines may reach."""
    addresses = [each.getsockname()[0] for each in sockets]
    return [each for each in addresses if not ipaddress.ip_address(each.partition("%")[0]).is_loopback]


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """The families and addresses of `host`, as `socket.bind` takes them. Raises ListenError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of the name is too long, or empty
        hint = " (conda sets HOST to the name of its compiler's platform)" if host.count("-") >= 2 else ""
        raise ListenError(f"HOST={host!r}: no address has this name{hint}; {REMEDY}") from error
    return [(family, address) for family, _, _, _, address in found]


def _words(error: OSError, host: str, port: int, port_setting: str) -> str:
    in_use = f"{port_setting}={port}: address already in use: another program listens on this port of HOST={host}"
    return {
        errno.EADDRINUSE: f"{in_use}. Stop it, or choose another port; 0 takes a free one",
        errno.EACCES: f"{port_setting}={port}: this port needs the rights of root; choose one from 1024 to 65535",
        errno.EPERM: f"{port_setting}={port}: the system forbids this port; choose another",
        errno.EADDRNOTAVAIL: f"HOST={host!r}: this machine does not have this address; {REMEDY}",
    }.get(error.errno or 0, f"HOST={host!r} {port_setting}={port}: cannot listen ({(error.strerror or '').lower()})")
