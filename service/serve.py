"""`faster-rcnn serve`: reads the settings from flags and environment variables, then serves until SIGTERM or SIGINT.

Each field of `Settings` can be set by a flag or a variable: `port` by --port or PORT. Flags override variables.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from service import setting_checks
from service.setting_checks import flag, value_fault
from service.settings import Settings
from service.sockets import ListenError, Sockets, open_sockets, public_addresses, remove_path
from service.telemetry import logs

log = logging.getLogger(__name__)

# The settings most often changed, which --help lists first.
COMMON = (
    "host",
    "port",
    "model_store",
    "default_model",
    "api_keys_file",
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
    """Serves, then ends the process. Returns only if it cannot start.

    Returns the exit code: 2 if a value is wrong, 1 if a file or folder that a setting names cannot be used.
    """
    try:
        flags = read_flags(argv, prog)
        settings = read_settings(flags)
        from service.telemetry import tracing

        traces = tracing.provider_from_environment()
    except ValueError as error:
        for line in str(error).split("\n"):
            logs.say_error(f"{prog}: {line}")
        return 2
    if faults := list(setting_checks.faults(settings, flags)):
        for line in faults:
            logs.say_error(f"{prog}: {line}")
        return 1
    logs.start(settings.log_level, settings.access_log, settings.log_format == "json")
    for variable, setting in setting_checks.misspelled(os.environ):
        log.warning("%s is not a setting; did you mean %s?", variable, setting.upper())
    try:
        sockets = open_sockets(settings)
    except ListenError as error:
        log.error("%s", error)
        return leave(1)
    _warn_if_public(settings, sockets)
    from service.server import serve  # slow to import; by now all settings are known to be right

    code = serve(settings, sockets, traces)
    if settings.uds:
        for each in sockets.service:
            each.close()
        remove_path(settings.uds)
    return leave(code)


def _warn_if_public(settings: Settings, sockets: Sockets) -> None:
    if settings.api_keys_file is None and public_addresses(sockets.service):
        log.warning(
            "HOST=%s: other machines may reach the service, and it asks for no keys. Set API_KEYS_FILE "
            "(`faster-rcnn key NAME` makes a key), or HOST=127.0.0.1 to serve this machine only",
            settings.host,
        )


def leave(code: int) -> NoReturn:
    """Ends the process without cleaning up, which could hang on a dead GPU or wait for a model to load."""
    logs.finish()
    os._exit(code)


def read_settings(flags: Mapping[str, str | bool]) -> Settings:
    """The settings from `flags` and from the environment.

    Raises ValueError with one line per fault, which names the flag or the variable.
    """
    try:
        return Settings(**flags)  # type: ignore[arg-type]  # pydantic converts the texts
    except ValidationError as error:
        raise ValueError("\n".join(value_fault(fault, flags) for fault in error.errors())) from error


def read_flags(argv: Sequence[str] | None = None, prog: str = "faster-rcnn serve") -> dict[str, str | bool]:
    """The settings that the flags in `argv` give, by name. Raises ValueError for an unknown or incomplete flag."""
    parser = build_parser(prog)
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name or 'option'}: {error.message}") from error
    if unknown:
        raise ValueError(_unknown(unknown[0]))
    return {name: value for name, value in vars(arguments).items() if value is not None}


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
    if bool in (field.annotation, *get_args(field.annotation)):
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=help_text)
    else:
        group.add_argument(flag(name), metavar=_metavar(field), help=help_text)


def _default(field: FieldInfo) -> str:
    """The default in words. If it is None or empty, the setting's description explains what applies."""
    if field.default in (None, ""):
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
    near = difflib.get_close_matches(option, map(flag, Settings.model_fields), n=1)
    return f"unknown option {option}; {f'did you mean {near[0]}?' if near else '--help lists the options'}"
