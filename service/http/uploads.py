"""Reads the image file from a request's body (multipart, raw, or base64 in JSON), with limits on size and time.

The declared size is checked before anything is read, and the received bytes are counted as they arrive.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import orjson
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.http import image_base64, multipart
from service.http.connections import body_size
from service.http.gate import client
from service.http.multipart import CURL, printable
from service.http.problems import Problem
from service.http.traffic import Traffic
from service.http.uploads_in_progress import FREE_BYTES
from service.settings import Settings

# A data: URL contains one comma, base64 none. JSON with many small values would need 25 times its size in memory.
MAX_COMMAS = 8
# orjson keeps the last of several members with the same name. One member has four quotation marks, and base64 has none.
QUOTES = 4
SHAPE = "The body must be an object whose only member is image, a string"
WANTED_JSON = 'Send {"image": "<base64 of the file>"}.'
LONGEST_CONTENT_TYPE = 1000  # characters; bounds the time to parse it
ACCEPTED = "multipart/form-data, image/*, application/octet-stream or application/json"

_IMAGE_TYPE = re.compile(rb"image/[a-z0-9!#$&^_.+*-]+")


def has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or int(request.headers.get("content-length", 0)) > 0


async def read(request: Request, settings: Settings, traffic: Traffic) -> bytes:
    """The image file that `request` carries, within the limits of `settings` and of all uploads together.

    Raises Problem (400, 408, 413, 415, 429), and Starlette's ClientDisconnect if the client closes its connection.
    """
    limit, timeout = settings.max_upload_bytes, settings.receive_timeout
    if any(value.strip().lower() != "identity" for value in request.headers.getlist("content-encoding")):
        raise Problem(415, "media_type", "Content-Encoding is not supported. Send the image without this header.")
    if int(request.headers.get("content-length", 0)) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout) as timer:
            with traffic.uploads.one(client(request.scope), body_size(request), timer) as upload:
                data = await _image(request, _bounded(request, limit, partial(traffic.uploads.take_place, upload)))
    except TimeoutError as error:
        raise _ended(upload.ended, settings) from error
    except ClientDisconnect:
        traffic.metrics.cancelled.labels("disconnected", "read").inc()
        raise
    traffic.metrics.upload_bytes.inc(len(data))
    if not data:
        raise Problem(400, "empty", f"The request contains no image. For example: {CURL}")
    return data


def _ended(reason: str, settings: Settings) -> Problem:
    """The problem with an upload that was ended for this reason; an empty one means RECEIVE_TIMEOUT."""
    closes = {"Connection": "close"}
    if reason in ("evicted_upload", "upload_memory"):
        detail = "Too many uploads are in progress, and this one is slower than the others. Try again in 5 s."
        return Problem(429, "too_many_uploads", detail, closes | {"Retry-After": "5"})
    if reason == "slow_upload":
        fault = f"The body arrived at less than {settings.min_transfer_rate:g} bytes per second."
    else:
        fault = f"The body did not arrive within {settings.receive_timeout:g} s."
    return Problem(408, "slow_upload", f"{fault} Send a smaller image, or use a faster connection.", closes)


async def _image(request: Request, chunks: AsyncGenerator[bytes, None]) -> bytes:
    content_types = request.headers.getlist("content-type") or ["application/octet-stream"]
    if len(content_types) > 1 or len(content_types[0]) > LONGEST_CONTENT_TYPE:
        detail = f"Send one Content-Type of at most {LONGEST_CONTENT_TYPE} characters."
        raise Problem(415, "media_type", detail)
    kind = parse_options_header(content_types[0])[0]
    if kind == b"multipart/form-data":
        return await multipart.read(content_types[0], chunks)
    if kind == b"application/json":
        return await asyncio.to_thread(from_json, b"".join([chunk async for chunk in chunks]))
    if kind == b"application/octet-stream" or _IMAGE_TYPE.fullmatch(kind):
        return b"".join([chunk async for chunk in chunks])
    raise Problem(
        415,
        "media_type",
        f"Unsupported Content-Type. Send {ACCEPTED}; for example: {CURL}",
        {"Accept-Post": ACCEPTED},
    )


def from_json(body: bytes) -> bytes:
    """The image file in `{"image": "<base64>"}`, which may be a data: URL. Raises Problem (400).

    The body may begin with a byte order mark, which RFC 8259 allows a reader to ignore.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        raise Problem(400, "bad_json", f"The body is in UTF-16 or UTF-32. Send JSON in UTF-8. {WANTED_JSON}")
    if body.count(b",") > MAX_COMMAS:
        raise Problem(400, "bad_json", f"{SHAPE}. {WANTED_JSON}")
    try:
        document = orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise Problem(400, "bad_json", f"The body is not valid JSON. {WANTED_JSON}") from error
    if fault := _json_fault(document):
        raise Problem(400, "bad_json", f"{fault} {WANTED_JSON}")
    if body.count(b'"') != QUOTES:
        raise Problem(400, "bad_json", f"{SHAPE} without quotation marks, given once. {WANTED_JSON}")
    try:
        return image_base64.decode(document["image"])
    except image_base64.Base64Error as error:
        raise Problem(400, "bad_base64", f"{error} {WANTED_JSON}") from error


def _json_fault(document: object) -> str:
    """What is wrong with the members of a JSON body, or ""."""
    if not isinstance(document, dict):
        return f"{SHAPE}."
    others = ", ".join(printable(name) for name in document if name != "image")
    if "image" not in document:
        return f"{SHAPE}, but it has {others or 'none'}."
    if others:
        return f"{SHAPE}, but it also has {others}. Parameters belong in the query."
    return "" if isinstance(document["image"], str) else f"{SHAPE}."


async def _bounded(
    request: Request, limit: int, take_place: Callable[[], Awaitable[None]]
) -> AsyncGenerator[bytes, None]:
    """The body's chunks. It takes a place for the upload before it waits for more than FREE_BYTES.

    Raises Problem (413) once their total exceeds `limit` bytes, and Starlette's ClientDisconnect.
    """
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        if chunk:
            yield chunk
        if more and received >= FREE_BYTES:
            await take_place()


def _too_large(limit: int) -> Problem:
    detail = f"The body is larger than the limit of {limit:,} bytes. Send a smaller image."
    return Problem(413, "too_many_bytes", detail, more={"limit_bytes": limit})
