"""Functions in processes of their own, to be measured there.

Each has its own memory peak and its own threads. A process that hangs or crashes does not affect the others, and one
that exceeds its time is ended.
"""

import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

CONTEXT = multiprocessing.get_context("spawn")  # a forked process would inherit the threads and the memory
KIB = 1024
PATIENCE = 5.0  # seconds for a process to end
LONGEST_LINE = 300


class Failed(Exception):  # noqa: N818  the tables show this word
    """The measurement could not be made; the message says why, in one line."""


class Worker:
    """A process that builds a function with `build`, keeps it, and calls it on request.

    build, the arguments and the results must be picklable.
    """

    def __init__(self, build: Callable[[], Callable[..., Any]]) -> None:
        self._pipe, there = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(there, build), daemon=True)
        self._process.start()
        there.close()
        self._ended = ""

    def ask(self, *arguments: Any, seconds: float) -> Any:
        """The function's result for `arguments`. Raises Failed if it raises, its process dies, or it takes too long."""
        if self._ended:
            raise Failed(self._ended)
        try:
            self._pipe.send(arguments)
            if not self._pipe.poll(seconds):
                self._end(f"stopped after {seconds:.0f} s")
            fault, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(PATIENCE)
            self._end(f"its process ended with {self._process.exitcode}, perhaps because memory ran out", error)
        if fault:
            raise Failed(fault)
        return value

    def _end(self, reason: str, cause: Exception | None = None) -> NoReturn:
        self._ended = reason
        self.close()
        raise Failed(reason) from cause

    def close(self) -> None:
        """Lets the process end by itself, so that it cleans up, and kills it if it does not."""
        self._pipe.close()
        if not self._ended:
            self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()


def call_aside(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """`function(*arguments)` in a process of its own. Raises Failed as `Worker.ask` does."""
    worker = Worker(_Returned(function))
    try:
        return worker.ask(*arguments, seconds=seconds)
    finally:
        worker.close()


class _Returned:
    """Builds the function that it was given."""

    def __init__(self, value: Callable[..., Any]) -> None:
        self._value = value

    def __call__(self) -> Callable[..., Any]:
        return self._value


def peak_memory() -> int:
    """The most memory that this process has had, in bytes.

    Linux keeps `ru_maxrss` when a process starts another program, so it could be the parent's; VmHWM starts anew.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * KIB


def one_line(error: BaseException) -> str:
    """The first line of an error that is not empty, short enough for a table, with the type unless it is for users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    text = lines[0] if isinstance(error, OSError | ValueError | Failed) else f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def _serve(pipe: Connection, build: Callable[[], Callable[..., Any]]) -> None:
    warnings.simplefilter("ignore")  # the libraries' own deprecations
    function, fault = None, ""
    try:
        function = build()
    except Exception as error:
        fault = one_line(error)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        value = None
        if function is not None:
            fault = ""
            try:
                value = function(*arguments)
            except Exception as error:
                fault = one_line(error)
        pipe.send((fault, value))
