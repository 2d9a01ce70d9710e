"""`faster-rcnn serve`: reads the settings from flags and environment variables, then serves until SIGTERM or SIGINT.

Each field of `Settings` can be set by a flag or a variable: `port` by --port or PORT. Flags override variables.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from service.settings import Settings

# The settings most often changed, which --help lists first.
COMMON = (
    "host",
    "port",
    "model_store",
    "default_model",
    "require_cuda",
    "max_upload_bytes",
    "max_pixels",
    "max_in_flight",
    "request_timeout",
)

EPILOG = """Each option can also be set by an environment variable in capitals, such as MODEL_STORE for --model-store.
Options override variables. With the extra otel, OTEL_EXPORTER_OTLP_ENDPOINT switches traces on.

  faster-rcnn serve --port 9000 --model-store models
  MODEL_STORE=models faster-rcnn serve
"""


def main(argv: Sequence[str] | None = None, prog: str = "faster-rcnn serve") -> int:
    """Serves, then ends the process. Returns only if the settings are wrong, with exit code 2."""
    try:
        settings = read_settings(argv, prog)
        from service.server import serve  # slow to import, and not needed for --help or a wrong option
        from service.telemetry import tracing

        traces = tracing.provider_from_environment()
    except ValueError as error:
        for line in str(error).splitlines():
            print(f"{prog}: {line}", file=sys.stderr)
        return 2
    return leave(serve(settings, traces))


def leave(code: int) -> NoReturn:
    """Ends the process without cleaning up, which could hang on a dead GPU or wait for a model to load."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


def read_settings(argv: Sequence[str] | None = None, prog: str = "faster-rcnn serve") -> Settings:
    """The settings from the flags in `argv` and from the environment.

    Raises ValueError with one line per fault, which names the flag or the variable.
    """
    parser = build_parser(prog)
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name or 'option'}: {error.message}") from error
    if unknown:
        raise ValueError(_unknown(unknown[0]))
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ValueError("\n".join(_fault(fault, given) for fault in error.errors())) from error


def build_parser(prog: str = "faster-rcnn serve") -> argparse.ArgumentParser:
    """A parser with a flag for each setting. `Settings` checks the values, together with those of the variables.

    pydantic-settings can build such a parser, but its errors name neither the flag nor the variable, and its help has
    no groups.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [OPTION ...]",
        description="Answers detection requests over HTTP, until SIGTERM or SIGINT.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    more = parser.add_argument_group("less often changed")
    fields = Settings.model_fields
    for name in sorted(fields, key=lambda name: COMMON.index(name) if name in COMMON else len(COMMON)):
        _add_flag(parser if name in COMMON else more, name, fields[name])
    return parser


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    help_text = f"{field.description or ''}{_default(field)}".strip().replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=None, help=help_text)
    else:
        group.add_argument(_flag(name), metavar=_metavar(field), help=help_text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(field: FieldInfo) -> str:
    """The default in words. If it is None, the setting's description explains what applies."""
    if field.default is None:
        return ""
    default = {True: "on", False: "off"}[field.default] if isinstance(field.default, bool) else field.default
    return f" (default: {default})"


def _metavar(field: FieldInfo) -> str:
    """The choices of a setting, or the name of its type."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    if get_origin(field.annotation) is Literal:
        return "|".join(map(str, kinds))
    return {"str": "TEXT", "int": "N", "float": "NUMBER", "ByteSize": "BYTES"}.get(
        kinds[0].__name__, kinds[0].__name__.upper()
    )


def _unknown(word: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; settings are options, see --help"
    option = word.partition("=")[0]
    near = difflib.get_close_matches(option, map(_flag, Settings.model_fields), n=1)
    return f"unknown option {option}; {f'did you mean {near[0]}?' if near else '--help lists the options'}"


def _fault(fault: Any, given: dict[str, Any]) -> str:
    """One line about a value that a setting refuses: the flag or variable that holds it, and the reason."""
    name = str(fault["loc"][0])
    source = f"{_flag(name)} {fault['input']}" if name in given else f"{name.upper()}={fault['input']!r}"
    return f"{source}: {fault['msg']}"
