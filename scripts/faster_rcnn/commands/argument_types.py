"""Argument types: each converts the text of an option, or refuses it with a sentence that says what is allowed."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Number = TypeVar("Number", int, float)

MOST = 10**9  # of anything that is counted; a larger number is a slip of the hand
LARGEST_SIDE = 20_000  # pixels; a single image of this size takes 1.2 GB
MOST_WORKERS = 1024


def path(text: str) -> Path:
    """A file or folder. A `~` at the start is the home folder; the shell leaves it alone in `--out=~/runs`."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is a URL; name a file or folder, and copy it with the tools of its store"
        )
    return Path(_at_home(text))


def source(text: str) -> str:
    """Data or proposals, such as `coco:DIR` or `rpn:RUN`. A `~` at the start of the path is the home folder."""
    kind, colon, place = text.partition(":")
    return kind + colon + _at_home(place) if colon else _at_home(text)


def _at_home(text: str) -> str:
    return os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111  Path would change other texts


def usable_device(text: str) -> "torch.device":
    """A device that torch can use on this machine."""
    import torch

    try:
        device = torch.device(text)
        usable = torch.empty(0, device=device).device.type != "meta"  # which computes nothing
    except (RuntimeError, AssertionError, NotImplementedError):  # torch's errors for a device that is not there
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{text} cannot be used on this machine; use cpu, or cuda with a GPU")
    return device


def above_zero(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (number := _number(text, float)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0" if number <= 0 else f"{text} is not a finite number")
    return number


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    if not 0 <= (number := _number(text, float)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (number := _number(text, float)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def part(text: str) -> float:
    """A number between 0 and 1, without these two."""
    if not 0 < (number := _number(text, float)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def whole(least: int, most: int) -> Callable[[str], int]:
    """A type for whole numbers from `least` to `most`."""

    def convert(text: str) -> int:
        if (number := _number(text, int)) < least:
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        if number > most:
            raise argparse.ArgumentTypeError(f"{text} is not at most {most}")
        return number

    return convert


positive = whole(1, MOST)
count = whole(0, MOST)
pixels = whole(1, LARGEST_SIDE)
seed_number = whole(0, 2**63 - 1)
version_number = whole(0, 2**63 - 1)
worker_count = whole(0, MOST_WORKERS)
some_workers = whole(1, MOST_WORKERS)


def _number(text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        hint = f"; write {text.replace(',', '.')}" if kind is float and _is_decimal_comma(text) else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}{hint}") from None


def _is_decimal_comma(text: str) -> bool:
    return text.count(",") == 1 and text.replace(",", "").removeprefix("-").isdecimal()
