"""How a line of the log is written: as text, or as JSON with the names of OpenTelemetry's data model for logs.

Both begin with the time in UTC. No text that a client or a model card has made can start a line of its own or control a
terminal.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import orjson

# The control characters, the separators of lines, and those that change the direction of text.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPED = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_ESCAPED_IN_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS}

# https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber
SEVERITY = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17, logging.CRITICAL: 21}


class TextFormatter(logging.Formatter):
    """Writes a record as one line, and its traceback as indented lines, without control characters."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802, ARG002  logging's
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802  logging's name
        text = super().formatException(ei)  # type: ignore[arg-type]  # logging's own type is private
        return "\n".join(f"    {escaped(line)}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: timestamp, severity_text, severity_number, body, scope and attributes.

    A record's only argument may have a method `attributes`, as the lines of the access log do.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": _time(record),
            "severity_text": record.levelname,
            "severity_number": SEVERITY.get(record.levelno, 0),
            "body": record.getMessage(),
            "scope": {"name": record.name},
        }
        if attributes := _attributes(record) | self._exception(record):
            line["attributes"] = attributes
        return orjson.dumps(line, default=str).decode().translate(_ESCAPED_IN_JSON)

    def _exception(self, record: logging.LogRecord) -> dict[str, Any]:
        if not record.exc_info or not record.exc_info[0]:
            return {}
        kind, error, _ = record.exc_info
        return {
            "exception.type": f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(error),
            "exception.stacktrace": self.formatException(record.exc_info),
        }


def escaped(text: str) -> str:
    """`text` with visible escapes in place of control characters."""
    return text.translate(_ESCAPED)


def _time(record: logging.LogRecord) -> str:
    """The time of a record in UTC, with milliseconds, as in RFC 3339."""
    time = datetime.fromtimestamp(record.created, UTC)
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    arguments = record.args if isinstance(record.args, tuple) else ()
    attributes = getattr(arguments[0], "attributes", None) if len(arguments) == 1 else None
    return attributes() if callable(attributes) else {}
