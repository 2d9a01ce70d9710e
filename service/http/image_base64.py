"""Decodes base64 in the variants that clients send (RFC 4648, and data: URLs of RFC 2397).

Line ends and spaces are left out, the padding may be missing, and the alphabet may be the one for URLs, with - and _.
Everything else is an error that names the place, because a decoder that skips wrong characters returns another file.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from urllib.parse import unquote_to_bytes

WHITESPACE = string.whitespace.encode()
LONGEST_HEAD = 1000  # characters of a data: URL before its comma

_WRONG = re.compile(r"[^A-Za-z0-9+/_=\s-]", re.ASCII)
_STANDARD, _FOR_URLS = re.compile(r"[+/]"), re.compile(r"[-_]")


class Base64Error(ValueError):
    """The text is not base64. The message names the fault and its place."""


def decode(text: str) -> bytes:
    """The bytes that `text` stands for. Raises Base64Error."""
    if text[:5].lower() == "data:":
        text = _after_head(text)
    try:
        encoded = text.encode("ascii").translate(None, WHITESPACE)
    except UnicodeEncodeError:
        raise _fault(text) from None
    if b"-" in encoded or b"_" in encoded:
        if b"+" in encoded or b"/" in encoded:
            raise _mixture(text)
        encoded = encoded.translate(bytes.maketrans(b"-_", b"+/"))
    plain = encoded.rstrip(b"=")
    missing = -len(plain) % 4
    try:
        decoded = base64.b64decode(plain + b"=" * min(missing, 2), validate=True)
    except binascii.Error:
        raise _fault(text) from None
    if len(encoded) - len(plain) not in (0, missing):
        raise Base64Error(f"The base64 text of the image ends with a wrong number of =; it needs {missing} or none.")
    return decoded


def _after_head(url: str) -> str:
    """The base64 text of a data: URL."""
    comma = url.find(",", 0, LONGEST_HEAD)
    if comma < 0 or not re.search(r";\s*base64\s*$", url[:comma], re.IGNORECASE):
        raise Base64Error("The data: URL of the image must be in base64, as in data:image/jpeg;base64,….")
    text = url[comma + 1 :]
    if "%" in text:  # a URL may encode +, / and =
        return unquote_to_bytes(text).decode("ascii", "replace")
    return text


def _fault(text: str) -> Base64Error:
    places = [found.start()] if (found := _WRONG.search(text)) else []
    padding = text.find("=")
    if 0 <= padding < len(text.rstrip("=" + string.whitespace)):  # more text follows it
        places.append(padding)
    if not places:
        return Base64Error("The base64 text of the image is cut short: at least one character is missing at its end.")
    return Base64Error(f"The base64 text of the image has a wrong character at position {min(places) + 1:,}.")


def _mixture(text: str) -> Base64Error:
    places = sorted(found.start() + 1 for each in (_STANDARD, _FOR_URLS) if (found := each.search(text)))
    return Base64Error(
        "The base64 text of the image mixes two alphabets, + and / with - and _: "
        f"the second one begins at position {places[-1]:,}."
    )
