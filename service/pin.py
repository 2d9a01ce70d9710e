"""`faster-rcnn pin`: chooses the version of a model, and the model, that answer requests which name none.

A running service follows within MODEL_POLL_SECONDS, without a restart. So a rollback is one command.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from service.engine.model import ModelRefusedError, load_model
from service.models.remote import Remote, RemoteError, is_url, parse_url
from service.models.remote_copy import RemoteCopy
from service.models.store import (
    ModelPlace,
    StoreMissingError,
    UnusableFileError,
    directories,
    parse_place,
    read_default,
    read_pin,
    write_file,
)

PROG = "faster-rcnn pin"
EPILOG = """
  faster-rcnn pin                     list the models, their versions, and what is chosen
  faster-rcnn pin shapes/1            requests for shapes without ?version= get version 1
  faster-rcnn pin shapes --newest     they get the highest version again
  faster-rcnn pin shapes --default    requests without ?model= get shapes

The store may be a URL, as MODEL_STORE of the service: --store s3://bucket/models. Of a version there, the card and the
sizes of the files are checked, and the graphs are not downloaded.

A running service follows within MODEL_POLL_SECONDS. If the chosen version cannot be served, such requests get 503, and
no other version answers in its place.
"""


class Failed(Exception):  # noqa: N818  an outcome of the command, with its message
    """The command cannot do what it was asked to; the message says why, and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn pin`. Returns the exit code: 2 for a wrong command line, 1 if the store does not allow it."""
    parser = build_parser()
    try:
        options, unknown = parser.parse_known_args(argv)
        if unknown:
            raise ValueError(f"unexpected argument {unknown[0]}; see --help")
        place = _place(options.model)
        if (options.newest or options.default) and not place:
            raise ValueError("name a model, such as shapes")
        if options.newest and place and place.version is not None:
            raise ValueError(f"--newest takes a model without a version: {PROG} {place.name} --newest")
    except (argparse.ArgumentError, ValueError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    try:
        print(_run(options.store, place, options.newest, options.default))
    except (Failed, StoreMissingError, RemoteError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        print(f"{PROG}: {error.filename or options.store}: {reason}; nothing was changed", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} [NAME[/VERSION]] [OPTION ...]",
        description="Chooses the version of a model, and the model, that answer requests which name none.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="NAME[/VERSION]", help="what to choose; without it, list the store")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--newest", action="store_true", help="let the highest version answer again")
    action.add_argument("--default", action="store_true", help="let this model answer requests without ?model=")
    parser.add_argument(
        "--store",
        "--model-store",
        type=_store,
        metavar="DIR|URL",
        default=os.environ.get("MODEL_STORE") or "model_store",
        help="the model store (default: MODEL_STORE, else model_store)",
    )
    return parser


def _run(store: Path | str, place: ModelPlace | None, newest: bool, default: bool) -> str:
    """Lists the store, or changes it. Returns the text to print. Raises Failed, RemoteError or OSError."""
    if isinstance(store, Path):
        return overview(store) if place is None else change(store, place, newest, default)
    with tempfile.TemporaryDirectory() as temporary:
        copy = RemoteCopy(Remote(store), Path(temporary))
        if place is None:
            return overview(copy.folder)
        done = change(copy.folder, place, newest, default, copy.check)
        copy.upload("default" if default else f"{place.name}/default")
        return done


def change(
    store: Path, place: ModelPlace, newest: bool, default: bool, check: Callable[[Path], object] = load_model
) -> str:
    """Writes or removes a file `default`. Returns what was done. Raises Failed or OSError.

    check  raises ModelRefusedError if the version in this folder could not be served
    """
    found = _versions(store)
    if place.name not in found:
        raise Failed(f"there is no model {place.name} in the model store; it has {', '.join(found) or 'none'}")
    folder = store / place.name
    if place.version is not None:
        _check(folder, place.version, found[place.name], check)
    if default:
        write_file(store / "default", str(place))
        return f"{place} is the default model"
    if newest:
        (folder / "default").unlink(missing_ok=True)
        return f"the highest version of {place.name} answers"
    if place.version is None:
        listed = ", ".join(map(str, found[place.name]))
        raise Failed(f"name a version, such as {place.name}/{found[place.name][-1]}; {place.name} has {listed}")
    write_file(folder / "default", str(place.version))
    return f"{place.name} is pinned to version {place.version}"


def overview(store: Path) -> str:
    """The models with their versions, and the choices in effect."""
    lines = []
    for name, versions in _versions(store).items():
        listed = ", ".join(map(str, versions)) or "none"
        lines.append(f"{name}: versions {listed}; {_pinned(store / name)}")
    try:
        chosen = read_default(store)
    except UnusableFileError as error:
        lines.append(f"default: the file default of the store cannot be used: {error}")
    else:
        lines.append(f"default: {chosen or 'none is set, so it is the only model if there is one'}")
    return "\n".join(lines)


def _pinned(folder: Path) -> str:
    try:
        pin = read_pin(folder)
    except UnusableFileError as error:
        return f"the file {folder.name}/default cannot be used: {error}"
    return "the highest answers" if pin is None else f"pinned to {pin}"


def _versions(store: Path) -> dict[str, list[int]]:
    """The numbers of the versions of each model."""
    listing = directories(store)
    found: dict[str, list[int]] = {name: [] for name in listing.names}
    for folder in listing.versions:
        if folder.parent.name in found and folder.name.isdecimal():
            found[folder.parent.name].append(int(folder.name))
    return {name: sorted(versions) for name, versions in found.items() if versions}


def _check(folder: Path, version: int, versions: list[int], check: Callable[[Path], object]) -> None:
    """Raises Failed unless the service could load this version."""
    if version not in versions:
        raise Failed(f"{folder.name} has no version {version}; it has {', '.join(map(str, versions))}")
    try:
        check(folder / str(version))
    except ModelRefusedError as error:
        raise Failed(f"{folder.name}/{version} could not be served: {error}") from error


def _store(word: str) -> Path | str:
    """A folder or a URL. Raises argparse.ArgumentTypeError."""
    try:
        return parse_url(word) if is_url(word) else Path(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word}: {error}") from None


def _place(word: str | None) -> ModelPlace | None:
    try:
        return None if word is None else parse_place(word)
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
