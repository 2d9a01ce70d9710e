"""Shared by the commands: the parser, common options, checks and error handling.

torch is imported only where it is needed, so that --help and refused options do not wait for it.
"""

import argparse
import difflib
import errno
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch

    from faster_rcnn.training.run import RunRecord

Number = TypeVar("Number", int, float)

DATA = "a folder, zip file or JSON file of annotated images (docs/data.md), or shapes for generated images"

_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


class Parser(argparse.ArgumentParser):
    """The parser of one command. A mistake ends the process with exit code 2 and a one-line message."""

    def __init__(self, command: str, usage: str, description: str | None, **options: Any) -> None:
        prog = f"faster-rcnn {command}"
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # or a new option could change the meaning of a recorded command line
            **options,
        )

    def parse_args(  # type: ignore[override]  # without the overload for another namespace
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return arguments

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            self.error(f"unexpected argument {word!r}; --help shows what the command accepts")
        option = word.partition("=")[0]
        shown = [
            name
            for name, action in self._option_string_actions.items()  # argparse has no public list of its options
            if action.help != argparse.SUPPRESS
        ]
        near = difflib.get_close_matches(option, shown, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        self.error(f"unknown option {option}; {hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def run_command(
    prog: str, command: Callable[[], None], out: Path | None = None, interrupted: str = "interrupted"
) -> int:
    """Runs a command and returns its exit code. A fault of the input is printed in one line; a bug keeps its traceback.

    out: where the command writes, for operating-system errors that do not name a file;  interrupted: what Ctrl-C
    prints.
    """
    try:
        command()
    except OSError as error:
        message = in_words(error, out)
    except (ValueError, FloatingPointError) as error:
        message = _last_line(error)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        message = "the device ran out of memory; lower --batch-size, or train with --accumulate"
    except KeyboardInterrupt:
        message = interrupted
    else:
        return 0
    print(f"{prog}: {message}", file=sys.stderr)
    return 1


def in_words(error: OSError, out: Path | None = None) -> str:
    """An operating-system error as one line: the file, what happened, and what to do."""
    if error.errno is None or error.strerror is None:
        return _last_line(error)  # raised by this project, with a remedy of its own
    place = error.filename if error.filename is not None else out
    where = "" if place is None else f"{place}: "
    return f"{where}{error.strerror}; {_REMEDIES.get(error.errno, 'check the path and the disk')}"


def _last_line(error: Exception) -> str:
    """The last line of the message: an error from a worker process begins with the worker's traceback."""
    last = str(error).strip().splitlines()[-1]
    return last.removeprefix(f"{type(error).__name__}: ")


def _is_out_of_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


# Options that several commands share. Each has the same meaning everywhere.


def add_data(group: Any, default: str = "") -> None:
    group.add_argument("--data", help=f"{DATA}{default}")


def add_val_share(group: Any, default: str = "0.2 of data without any splits") -> None:
    group.add_argument(
        "--val-share",
        type=part,
        metavar="SHARE",
        help=f"share of the images to hold out for validation where the data has no split for it (default: {default})",
    )


def add_seed(group: Any) -> None:
    group.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")


def add_limit_images(group: Any, default: str = "all") -> None:
    group.add_argument(
        "--limit-images", type=positive, metavar="N", help=f"use only the first N images (default: {default})"
    )
    group.add_argument("--pictures", type=positive, dest="limit_images", help=argparse.SUPPRESS)  # its former name


def add_skip_bad_boxes(group: Any, default: str = "") -> None:
    group.add_argument(
        "--skip-bad-boxes",
        action="store_true",
        help=f"leave out images and boxes that `faster-rcnn check` reports as errors{default}",
    )


def add_workers(group: Any, default: int) -> None:
    group.add_argument(
        "--workers", type=positive, default=default, metavar="N", help="threads or processes that read images "
        f"and run Selective Search (default: {default})",
    )  # fmt: skip


def add_device(group: Any) -> None:
    group.add_argument(
        "--device", type=usable_device, help="where torch computes: cpu, cuda, cuda:1 … (default: cuda if usable)"
    )


def device_of(arguments: argparse.Namespace) -> "torch.device":
    """--device, or CUDA where it is usable, or else the CPU."""
    import torch

    if arguments.device is not None:
        return torch.device(arguments.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Checks that run before any long work.


def required(value: Any, option: str, remedy: str) -> Any:
    """Returns `value`. Raises ValueError, with `remedy`, if it is None."""
    if value is None:
        raise ValueError(f"{option} is missing; {remedy}")
    return value


def data_source(named: str | None, recorded: str | None = None) -> str:
    """--data, or the data that a run's record names. Raises ValueError if there is neither."""
    source = named if named is not None else recorded
    return str(required(source, "--data", f"name the images: {DATA}"))


def val_share_for(arguments: argparse.Namespace, record: "RunRecord", data: str) -> float | None:
    """--val-share, or that of a run if its own data is used."""
    if arguments.val_share is not None:
        return float(arguments.val_share)
    return record.val_share if data == record.data else None


def check_sizes(given: Mapping[str, Any]) -> None:
    """Raises ValueError if --min-size, the shorter side of an image, exceeds --max-size, the longer one."""
    shorter, longer = given.get("min_size"), given.get("max_size")
    if shorter is not None and longer is not None and shorter > longer:
        raise ValueError(f"--min-size {shorter} exceeds --max-size {longer}; lower the first or raise the second")


def check_writable(folder: Path) -> None:
    """Raises OSError if `folder` cannot be written, or created if it does not exist. Leaves no file behind."""
    place = folder.absolute()
    existing = next(one for one in (place, *place.parents) if one.exists())
    if not existing.is_dir():
        raise OSError(f"{existing} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}); name another folder") from error


# Argument types: each converts the text of an option or refuses it.


def usable_device(text: str) -> "torch.device":
    """A device that torch can use on this machine."""
    import torch

    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} cannot be used on this machine; use cpu, or cuda with a GPU"
        ) from error
    return device


def above_zero(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (number := _number(text, float)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
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


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (number := _number(text, int)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _number(text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
