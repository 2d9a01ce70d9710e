"""Commands in the test's own process: a new one would first import torch, which takes longer than most commands."""

import contextlib
import io
from collections.abc import Callable
from typing import NamedTuple

import pytest

from service.command_line import main


class Done(NamedTuple):
    """code: the exit code;  out, err: what was printed."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line that a command which failed has printed."""
        assert self.code in (1, 2)
        (line,) = self.err.splitlines()
        return line


def run_command(*words: object) -> Done:
    """`faster-rcnn` with these words."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # the parser's own: --help, and mistakes in options
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def run() -> Callable[..., Done]:
    return run_command
