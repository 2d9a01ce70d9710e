"""The command `faster-rcnn`: finds the module of a subcommand and calls its `main`.

It is part of `service`, so a container without the offline half can use it. The module of a subcommand is imported only
when that subcommand runs, because serving must work without torch and without `faster_rcnn`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = "faster-rcnn-service"


class Command(NamedTuple):
    """A subcommand.

    module   the module with its `main(argv) -> exit code`
    summary  its line in --help
    """

    module: str
    summary: str


MAIN = {
    "check": Command("faster_rcnn.commands.check", "check annotated images before training"),
    "train": Command("faster_rcnn.commands.train", "train a detector"),
    "evaluate": Command("faster_rcnn.commands.evaluate", "measure a training run or a published model"),
    "export": Command("faster_rcnn.commands.export", "publish a training run or a torchvision model for serving"),
    "serve": Command("service.serve", "answer detection requests over HTTP"),
}
FURTHER = {
    "key": Command("service.new_key", "make a key for a client of the service"),
    "pin": Command("service.pin", "choose the version or the model that answers by default, for example to roll back"),
    "quantise": Command("faster_rcnn.commands.quantise", "publish an int8 copy of a published model, for CPUs"),
    "propose": Command("faster_rcnn.commands.propose", "write region proposals to a file"),
    "compare": Command("faster_rcnn.commands.compare", "train and compare detectors that differ in one thing"),
    "shapes": Command("faster_rcnn.commands.shapes", "write generated images to disk"),
    "benchmark": Command("benchmarks.command", "measure a graph, or the service under load (from a checkout only)"),
}
COMMANDS = MAIN | FURTHER
SHARED_OPTIONS = {
    "--data": "the images: voc:DIR, coco:DIR, or shapes for generated ones",
    "--split": "the part of the data: train, val or test",
    "--out": "where to write the result",
    "--limit-images": "use only the first N images",
    "--weights": "pretrained weights to start from",
    "--checkpoint": "the result of a training run: best, last or a file",
    "--device": "where a model runs",
    "--provider": "the hardware that a graph is exported for: any, or cpu",
    "--seed": "seed of all random numbers",
    "--workers": "number of threads or processes that load images",
}
OTHER_SPELLINGS = {"quantize": "quantise"}


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn COMMAND …`. Returns the exit code: 2 if the command line is wrong."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        print(help_text(), file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        print(importlib.metadata.version(PACKAGE))
        return 0
    name = OTHER_SPELLINGS.get(words[0], words[0])
    if name not in COMMANDS:
        print(f"faster-rcnn: unknown command {words[0]}; {_nearest(words[0])}", file=sys.stderr)
        return 2
    if name == "benchmark" and not _benchmarks_are_here():
        print("faster-rcnn benchmark: the benchmarks are not installed; run it from a checkout", file=sys.stderr)
        return 1
    try:
        module = importlib.import_module(COMMANDS[name].module)
        code: int = module.main(words[1:])
    except ModuleNotFoundError as error:
        if _belongs_to_the_project(error.name):
            raise
        remedy = f"pip install '{PACKAGE}[train]'"
        print(f"faster-rcnn {name}: {error.name} is not installed; install it with {remedy}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        if "temporary directory" not in str(error):
            raise
        remedy = "set TMPDIR to a folder that can be written, or mount one at /tmp"
        print(f"faster-rcnn {name}: no folder for temporary files can be written; {remedy}", file=sys.stderr)
        return 1
    return code


def help_text() -> str:
    return "\n".join(
        [
            "usage: faster-rcnn COMMAND [OPTION ...]",
            "",
            "Trains Faster R-CNN detectors, publishes them, and serves them over HTTP.",
            "",
            "from annotated images to answers over HTTP:",
            *_lines({name: command.summary for name, command in MAIN.items()}),
            "",
            "further commands:",
            *_lines({name: command.summary for name, command in FURTHER.items()}),
            "",
            "options with the same meaning in every command:",
            *_lines(SHARED_OPTIONS),
            "",
            "faster-rcnn COMMAND --help shows the options of a command, with examples.",
        ]
    )


def _lines(explained: Mapping[str, str]) -> list[str]:
    return [f"  {name:15} {text}" for name, text in explained.items()]


def _nearest(word: str) -> str:
    near = difflib.get_close_matches(word, [*COMMANDS, *OTHER_SPELLINGS], n=1)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"


def _benchmarks_are_here() -> bool:
    """Whether this is a checkout, which has the benchmarks. Makes them importable; they are not installed."""
    scripts = CHECKOUT / "scripts"
    if not (scripts / "benchmarks" / "command.py").is_file():
        return False
    if str(scripts) not in sys.path:
        sys.path.insert(0, str(scripts))
    return True


def _belongs_to_the_project(module: str | None) -> bool:
    """Whether a missing module is the project's own, so that its absence is a bug rather than a missing extra.

    The package `faster_rcnn` as a whole is an exception: a container that only serves does not have it.
    """
    return module is None or module.partition(".")[0] in ("service", "benchmarks") or module.startswith("faster_rcnn.")


if __name__ == "__main__":
    sys.exit(main())
