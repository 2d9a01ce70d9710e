"""What the command lines share: how they fail, and numbers that make sense."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

import torch


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
    except torch.OutOfMemoryError:
        fail("the device has not enough memory; lower --batch-size, or train with --accumulate")
    except KeyboardInterrupt:
        fail("interrupted; --resume goes on where that is possible")


def usable_device(text: str) -> torch.device:
    """An argument that names a device of this machine."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} cannot be used on this machine; take cpu, or cuda with a GPU"
        ) from error
    return device


def above_zero(text: str) -> float:
    """An argument that measures something."""
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def share(text: str) -> float:
    """An argument from 0 to 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def positive(text: str) -> int:
    """An argument that counts something."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
