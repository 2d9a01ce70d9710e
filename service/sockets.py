"""The sockets on which the service listens, and what to do if it cannot."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from service.settings import Settings

# Bytes that the system receives for a connection before the service reads them. Otherwise it would take up to 6 MB, and
# a thousand unread uploads would use up the memory that the system has for TCP, which all connections share.
RECEIVE_BUFFER = 2**18
LONGEST_PATH = 103  # bytes of a Unix socket's path; macOS has room for 104 with the final zero, Linux for 108
REMEDY = "set 127.0.0.1 for this machine only, 0.0.0.0 for every interface, or an address of this machine"


class Sockets(NamedTuple):
    """The listening sockets of PORT or UDS and, if it is set, of METRICS_PORT."""

    service: list[socket.socket]
    metrics: list[socket.socket]


class ListenError(Exception):
    """The service cannot listen; the message names the setting, its value and the remedy."""


def open_sockets(settings: Settings) -> Sockets:
    """Listens on UDS, or else on HOST. METRICS_PORT is on HOST in both cases. Raises ListenError."""
    if settings.uds:
        service = [listen_on_path(settings.uds, int(settings.uds_mode, 8))]
    else:
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


def listen_on_path(path: Path, mode: int) -> socket.socket:
    """Opens a listening Unix socket at `path` with the permissions `mode`. Raises ListenError.

    A socket there on which nobody listens is replaced. Nobody can connect before the permissions are set: the socket is
    made and prepared under another name in the same folder, and then renamed.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ListenError(f"UDS={str(path)!r}: this system has no Unix sockets; set HOST and PORT instead")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ListenError(f"UDS={str(path)!r}: the path is too long; at most {LONGEST_PATH} bytes are possible")
    _refuse_to_replace(path)
    hidden = path.with_name(f".{os.getpid()}")
    created = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        hidden.unlink(missing_ok=True)
        created.bind(os.fspath(hidden))
        hidden.chmod(mode)
        created.listen()
        hidden.rename(path)
    except OSError as error:
        created.close()
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        reason = (error.strerror or "unknown error").lower()
        remedy = "choose a path in a folder that exists and that the service may write to"
        raise ListenError(f"UDS={str(path)!r}: cannot listen there ({reason}); {remedy}") from error
    return created


def remove_path(path: Path) -> None:
    """Removes the socket that `listen_on_path` has made, unless another process has replaced it by a live one."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
            path.unlink()


def _refuse_to_replace(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise ListenError(f"UDS={str(path)!r}: cannot listen there ({reason}); choose another path") from error
    if not is_socket:
        raise ListenError(f"UDS={str(path)!r}: this is not a socket, and is not replaced; choose another path")
    if _answers(path):
        raise ListenError(f"UDS={str(path)!r}: another program listens on this socket; stop it, or choose another path")


def _answers(path: Path) -> bool:
    """Whether a program listens on the socket, or it cannot be known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def public_addresses(sockets: Iterable[socket.socket]) -> list[str]:
    """The addresses of `sockets` that other machines may reach."""
    addresses = [each.getsockname()[0] for each in sockets if each.family != getattr(socket, "AF_UNIX", None)]
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
