"""`faster-rcnn key NAME`: makes a key for a client, and prints it once, with its line for API_KEYS_FILE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from service import keys

EPILOG = """The key itself is stored nowhere: only its SHA-256 is in the line. Replace a key that was lost.

  faster-rcnn key alice --per-second 10
  API_KEYS_FILE=keys.txt faster-rcnn serve
  curl -H "Authorization: Bearer KEY" -F image=@photo.jpg http://127.0.0.1:8000/detect
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for a faulty option, 1 if the key cannot be printed."""
    parser = argparse.ArgumentParser(
        prog="faster-rcnn key",
        description="Makes a key for a client of the service, and prints it with its line for API_KEYS_FILE.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="name of the client; log lines and metrics show it")
    parser.add_argument("--in-flight", metavar="N", help="maximum number of the key's requests in flight")
    parser.add_argument("--per-second", metavar="NUMBER", help="maximum number of the key's requests per second")
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            raise ValueError(f"unexpected argument {unknown[0]!r}; --help lists the options")
        if not arguments.name:
            raise ValueError("give the NAME of the client, such as alice")
        text = described(arguments.name, arguments.in_flight, arguments.per_second)
    except (argparse.ArgumentError, ValueError) as error:
        print(f"faster-rcnn key: {error}", file=sys.stderr)
        return 2
    try:
        print(text, flush=True)
    except OSError as error:
        print(f"faster-rcnn key: the key cannot be printed: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def described(name: str, in_flight: str | None, per_second: str | None) -> str:
    """A new key and its line, in words. Raises ValueError if the name or a limit is faulty."""
    key = keys.new()
    words = [name, keys.digest_of(key)]
    words += [f"in-flight={in_flight}"] if in_flight is not None else []
    words += [f"per-second={per_second}"] if per_second is not None else []
    keys.entry(words)
    return "\n".join(
        [
            f"The key of {name}, which is shown only now:",
            f"  {key}",
            "Its line for the file that API_KEYS_FILE names:",
            f"  {' '.join(words)}",
        ]
    )
