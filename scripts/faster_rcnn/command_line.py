"""What the command lines share: how they fail, and numbers that make sense."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


def fail(message: str) -> NoReturn:
    """Ends the program with one line that says what to do."""
    sys.exit(f"{sys.argv[0]}: {message}")


def run_command(main: Callable[[], None]) -> None:
    """Runs a command; a fault of its input ends it with one line, a fault of ours with a traceback."""
    try:
        main()
    except (OSError, ValueError, FloatingPointError) as error:
        # an error from a worker process carries the worker's traceback, whose last line is the error itself
        last = str(error).strip().splitlines()[-1]
        fail(last.removeprefix(f"{type(error).__name__}: "))
    except KeyboardInterrupt:
        fail("interrupted; --resume goes on where that is possible")


def positive(text: str) -> int:
    """An argument that counts something."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
