"""Sends a connection's responses, in few packets and with a deadline for clients that do not read."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

from service.http.deadlines import Alarm, Deadlines

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ


# Bytes beyond what the client's window admits. The system would take up to 4 MB for a client that reads nothing. It
# would not count as unsent here, and 4,096 such clients would occupy 16 GB of the system's memory.
SYSTEM_BUFFER = 2**17
TCP_NOTSENT_LOWAT = {"linux": 25, "darwin": 0x201}.get(sys.platform)  # socket has this name from Python 3.12 on


def limit_system_buffer(transport: asyncio.Transport) -> None:
    """Limits the bytes that the system takes although the client's window does not admit them yet."""
    connection = transport.get_extra_info("socket")
    if TCP_NOTSENT_LOWAT and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, SYSTEM_BUFFER)


class Outgoing(asyncio.Transport):
    """The transport to which the HTTP protocol writes. It passes data on to the connection's real transport.

    It sends the head of a response together with its body, in one system call and one packet. It reports a client that
    reads too slowly while bytes are waiting to be sent. It discards writes to a closing connection, as asyncio does;
    uvloop would raise an error.

    on_flow  called when the protocol pauses reading (True) or resumes it (False). Whether to read is the connection's
             decision, because it has further reasons to read
    on_slow  called when the client has read too slowly
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        on_flow: Callable[[bool], None],
        on_slow: Callable[[], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._deadlines = deadlines
        self._on_flow = on_flow
        self._on_slow = on_slow
        self._held = b""
        self._withheld = False
        self._wrote_while_withheld = False
        self._alarm = Alarm(loop)

    # --- the part of the transport interface that an HTTP protocol uses ----------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._on_flow(True)

    def resume_reading(self) -> None:
        self._on_flow(False)

    def write(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn writes nothing but bytes
        if self._withheld:
            self._wrote_while_withheld = True
        elif self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.writelines((held, data))
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)  # in case nothing else is written

    def close(self) -> None:
        if self._withheld:
            return
        self._flush()
        if not self._transport.is_closing():
            self._transport.close()  # takes effect once everything is sent
            self.expect_progress()

    def abort(self) -> None:
        self._transport.abort()

    # --- the connection's side ---------------------------------------------------------------------------------------

    def withhold(self) -> None:
        """From now on, discards what the protocol writes, and does not close."""
        self._withheld, self._wrote_while_withheld = True, False

    def stop_withholding(self) -> bool:
        """Ends `withhold`. Returns whether the protocol has written anything meanwhile."""
        self._withheld = False
        return self._wrote_while_withheld

    def end(self) -> None:
        """Sends what is held, and then the end of the stream. The other end can still send."""
        self._flush()
        if not self._transport.is_closing():
            self._transport.write_eof()

    # --- the deadline ------------------------------------------------------------------------------------------------

    def expect_progress(self) -> None:
        """From now on, the client must read enough of the unsent bytes within every period of `deadlines.write`."""
        self._alarm.clear()
        if unsent := self.unsent():
            self._alarm.set(self._deadlines.write, self._check_progress, unsent)

    def expect_nothing(self) -> None:
        self._alarm.clear()

    def unsent(self) -> int:
        """The number of bytes that the client has not received.

        It includes the system's send buffer, which accepts more bytes only in large steps and so hides slow progress.
        """
        size = self._transport.get_write_buffer_size()
        if size and sys.platform == "linux":
            size += int.from_bytes(ioctl(self._transport.get_extra_info("socket"), TIOCOUTQ, bytes(4)), sys.byteorder)
        return size

    def _check_progress(self, unsent_before: int) -> None:
        enough = max(1, self._deadlines.min_rate * self._deadlines.write)
        if unsent_before - self.unsent() >= enough:
            self.expect_progress()
        else:
            self._on_slow()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(held)
