"""The log, and the announcements on standard output. Neither can stop or delay the service.

A thread of its own writes the lines. A full disk, a closed descriptor, a pipe without a reader or with one that has
stopped reading costs lines, which are counted, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Collection

from service.telemetry.log_format import JsonFormatter, TextFormatter

STDIN, STDOUT, STDERR = 0, 1, 2
MOST_WAITING = 2000  # lines; further ones are lost until the thread has written some
LONGEST_LINE = 16_384  # characters, tracebacks included
FLUSH_SECONDS = 1.0


class Writer(logging.Handler):
    """Writes log lines to standard error and announcements to standard output, from a thread of its own.

    lost  lines that could not be written
    """

    def __init__(self, stdout: int = STDOUT, stderr: int = STDERR, closed: Collection[int] = ()) -> None:
        """`stdout` and `stderr`: descriptors. `closed`: those that were closed when the process started."""
        super().__init__()
        self.setFormatter(TextFormatter())
        self.lost = 0
        self._stderr = stderr
        self._names = {stdout: "standard output", stderr: "standard error"}
        self._dropped = 0  # of the lost lines, those for which there was no room, since this was last said
        self._closed = frozenset(closed)
        self._faulty: dict[int, int] = {}  # the streams that cannot be written, with the number of lines lost since
        self._cut: set[int] = set()  # the streams whose last line is incomplete
        self._waiting: queue.Queue[tuple[int, str] | threading.Event] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # the arguments do not fit the message; logging itself would print a traceback
            fault = f"a message could not be formatted ({type(error).__name__}): {record.msg!r}"
            text = self._line(logging.ERROR, fault, record.name)
        self.put(self._stderr, text)

    def put(self, stream: int, text: str) -> None:
        """Has `text` written soon to `stream`, one of the two descriptors. Never blocks."""
        if len(text) > LONGEST_LINE:
            text = f"{text[:LONGEST_LINE]}… ({len(text) - LONGEST_LINE} more characters)"
        try:
            self._waiting.put_nowait((stream, text))
        except queue.Full:
            self.lost += 1
            self._dropped += 1

    def finish(self, seconds: float = FLUSH_SECONDS) -> None:
        """Waits until the lines so far are written, at most `seconds`."""
        done = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put(done, timeout=seconds)
            done.wait(seconds)

    def _run(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._write_line(*item)

    def _write_line(self, stream: int, text: str) -> None:
        try:
            self._write(stream, f"{text}\n")
        except OSError as error:
            self.lost += 1
            self._faulty[stream] = self._faulty.get(stream, 0) + 1
            if self._faulty[stream] == 1:
                self._tell_of_fault(stream, text, (error.strerror or "unknown error").lower())
            return
        lost, self._dropped = self._faulty.pop(stream, 0) + self._dropped, 0
        if lost:
            fault = f"{lost} lines are lost, because {self._names[stream]} could not be written in time"
            self._write_line(stream, self._line(logging.WARNING, fault))

    def _tell_of_fault(self, stream: int, text: str, reason: str) -> None:
        """Says on the other stream why this one cannot be written. An announcement is repeated there."""
        (other,) = self._names.keys() - {stream}
        what = "log lines are lost" if stream == self._stderr else f"this line is lost: {text}"
        fault = f"{self._names[stream]} cannot be written ({reason}); {what}"
        with contextlib.suppress(OSError):
            self._write(other, f"{self._line(logging.WARNING, fault)}\n")

    def _line(self, level: int, text: str, name: str = __name__) -> str:
        """A line of the log that is written without passing through the queue."""
        return self.format(logging.LogRecord(name, level, __file__, 0, text, (), None))

    def _write(self, stream: int, text: str) -> None:
        """Writes the whole text, in one piece if the stream takes it. Raises OSError."""
        if stream in self._closed:
            raise OSError(errno.EBADF, "it is closed")
        data = text.encode("utf-8", "backslashreplace")
        if stream in self._cut:
            data = b"\n" + data
        while data:
            try:
                data = data[os.write(stream, data) :]
            except BlockingIOError:  # another program has made the stream non-blocking
                select.select([], [stream], [])
            except OSError:
                self._cut.add(stream)
                raise
        self._cut.discard(stream)


_writer: Writer | None = None


def start(level: str, access_log: bool, json: bool = False) -> Writer:
    """Sends the log to standard error, from the level `level` on. Called once, when the process starts.

    access_log  whether to write a line for each request
    json        whether to write JSON instead of text
    """
    global _writer
    _writer = Writer(closed=_hold_closed_streams())
    if json:
        _writer.setFormatter(JsonFormatter())
    logging.root.addHandler(_writer)
    logging.root.setLevel(level.upper())
    logging.getLogger("service.access").setLevel(logging.INFO if access_log else logging.CRITICAL)
    return _writer


def lines_lost() -> int:
    return _writer.lost if _writer else 0


def announce(text: str) -> None:
    """Prints `text` on standard output."""
    if _writer:
        _writer.put(STDOUT, text)
    else:
        print(text, flush=True)


def finish() -> None:
    """Waits for a moment until everything is written."""
    if _writer:
        _writer.finish()


def say_error(text: str) -> None:
    """Prints `text` on standard error if that is possible, before the log has started."""
    if sys.stderr:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def _hold_closed_streams() -> list[int]:
    """Opens /dev/null in place of each closed standard stream, and returns those that were closed.

    Otherwise a socket or a model file would get the number of the closed stream, and a library that prints an error
    would write into it.
    """
    closed = []
    for stream in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            closed.append(stream)
    return closed
