"""Shared by the commands: the parser, common options, checks and error handling.

torch is imported only where it is needed, so that --help and refused options do not wait for it.
"""

import argparse
import contextlib
import difflib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from faster_rcnn.commands.argument_types import (
    part,
    positive,
    seed_number,
    share,
    some_workers,
    source,
    usable_device,
    whole,
)
from faster_rcnn.commands.failures import in_one_line
from faster_rcnn.data.orientation import EXIF_BOXES
from faster_rcnn.data.shown_paths import shown
from faster_rcnn.files import existing
from faster_rcnn.training.stopping import Stopped, sigterm_raises
from service.images.depth import WHITE

if TYPE_CHECKING:
    import torch

    from faster_rcnn.training.run import RunRecord

# Errors that the user's options or data cause; others come from the machine, and the same command may succeed later.
MISTAKES = (ValueError, BlockingIOError, FileExistsError, FileNotFoundError)

DATA = "annotated images: a folder, a zip file or a file of annotations (docs/data.md); or shapes for generated images"


# What other programs call an option, if the names are too different for a suggestion by spelling.
ELSEWHERE = {
    "--batch": "--batch-size",
    "--bs": "--batch-size",
    "--config": "--backbone",
    "--dataset": "--data",
    "--folder": "--out",
    "--gpu": "--device",
    "--gpus": "--device",
    "--img": "--min-size",
    "--img-size": "--min-size",
    "--imgsz": "--min-size",
    "--j": "--workers",
    "--lr": "--learning-rate",
    "--max-iter": "--iterations",
    "--max-steps": "--iterations",
    "--model": "--backbone",
    "--num-workers": "--workers",
    "--output": "--out",
    "--output-dir": "--out",
    "--pretrained": "--weights",
    "--project": "--out",
    "--random-seed": "--seed",
    "--save-dir": "--out",
    "--steps": "--iterations",
    "--subset": "--split",
    "-b": "--batch-size",
    "-d": "--data",
    "-j": "--workers",
    "-o": "--out",
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
        words = [self._in_british_spelling(word) for word in (sys.argv[1:] if args is None else args)]
        arguments, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self._refuse(unknown[0])
        return arguments

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith("-"):
            self.error(f"unexpected argument {word!r}; --help shows what the command accepts")
        option = word.partition("=")[0]
        if (ours := ELSEWHERE.get(option)) in self._option_string_actions:
            self.error(f"unknown option {option}; did you mean {ours}?")
        shown = [
            name
            for name, action in self._option_string_actions.items()  # argparse has no public list of its options
            if action.help != argparse.SUPPRESS
        ]
        near = difflib.get_close_matches(option, shown, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        self.error(f"unknown option {option}; {hint}")

    def _in_british_spelling(self, word: str) -> str:
        """`--optimizer` as `--optimiser`, and so on, if the command has the latter."""
        option, equals, value = word.partition("=")
        british = option.replace("iz", "is")
        is_ours = word.startswith("--") and option not in self._option_string_actions
        return british + equals + value if is_ours and british in self._option_string_actions else word

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def run_command(
    prog: str,
    command: Callable[[], None],
    out: Path | None = None,
    interrupted: str = "interrupted",
    afterwards: Callable[[], str] = str,
) -> int:
    """Runs a command and returns its exit code. A fault of the input is printed in one line; a bug keeps its traceback.

    out: where the command writes, for operating-system errors that do not name a file;  interrupted: what Ctrl-C
    prints;  afterwards: returns what to add to the line if the machine, and not the input, ended the command.
    """
    code = 1
    try:
        with sigterm_raises():
            command()
    except Stopped as stop:
        message, code = f"{stop}{afterwards()}", stop.exit_code
    except KeyboardInterrupt:
        message = interrupted
    except Exception as error:
        if (line := in_one_line(error, out)) is None:
            raise
        message = line if isinstance(error, MISTAKES) else f"{line}{afterwards()}"
    else:
        return 0
    _print_error(shown(f"{prog}: {message}"))
    return code


def _print_error(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read standard error
        sys.stderr.write(f"{line}\n")  # at once, because several processes may write lines
        sys.stderr.flush()


# Options that several commands share. Each has the same meaning everywhere.


def add_data(group: Any, default: str = "") -> None:
    group.add_argument("--data", type=source, help=f"{DATA}{default}")


def add_val_share(group: Any, default: str = "0.2 of data without any splits") -> None:
    group.add_argument(
        "--val-share",
        type=part,
        metavar="SHARE",
        help=f"share of the images to hold out for validation where the data has no split for it (default: {default})",
    )


def add_seed(group: Any) -> None:
    group.add_argument("--seed", type=seed_number, default=0, help="seed of all random numbers (default: 0)")


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


def add_score_threshold(group: Any) -> None:
    group.add_argument(
        "--score-threshold",
        type=share,
        metavar="SCORE",
        help="the default of the request parameter score_threshold (default: the one with the highest F1 at IoU 0.5 on "
        "the validation split; 0.5 without data)",
    )


def add_white(group: Any, default: str) -> None:
    group.add_argument(
        "--white",
        type=whole(1, WHITE),
        metavar="VALUE",
        help="value that means white in images with 16 bits per channel, such as 4095 for 12 bits "
        f"(default: {default})",
    )


def add_exif_boxes(group: Any, default: str = "") -> None:
    group.add_argument(
        "--exif-boxes",
        choices=EXIF_BOXES,
        help="where an image's EXIF orientation turns it and no size tells: boxes were drawn on the upright image, or "
        f"on the stored one and are turned with it (default: upright, with a warning{default})",
    )


def add_workers(group: Any, default: int) -> None:
    group.add_argument(
        "--workers",
        type=some_workers,
        default=default,
        metavar="N",
        help=f"threads or processes that read images and run Selective Search (default: {default})",
    )


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
    return str(required(source, "--data", f"name {DATA}"))


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
    try:
        place = existing(folder)
        if not place.is_dir():
            raise OSError(f"{place} is a file; name a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"{folder} cannot be written ({error.strerror}); name another folder") from error
