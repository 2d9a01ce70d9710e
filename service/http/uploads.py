"""Reads the image file from a request's body (multipart, raw, or base64 in JSON), with limits on size and time.

The declared size is checked before anything is read, and the received bytes are counted as they arrive.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import string
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.http.connections import body_size
from service.http.gate import client
from service.http.problems import Problem
from service.http.traffic import Traffic
from service.http.uploads_in_progress import FREE_BYTES
from service.settings import Settings

FIELDS = ("image", "file")
CURL = "curl -F image=@image.jpg"
# A data: URL contains one comma, base64 none. JSON with many small values would need 25 times its size in memory.
MAX_COMMAS = 8
WHITESPACE = string.whitespace.encode()
ACCEPTED = "multipart/form-data, image/*, application/octet-stream or application/json"


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**62  # Starlette would write files above 1 MB to disk; the size of the body is limited anyway


def has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


async def read(request: Request, settings: Settings, traffic: Traffic) -> bytes:
    """The image file that `request` carries, within the limits of `settings` and of all uploads together.

    Raises Problem (400, 408, 413, 415, 429), and Starlette's ClientDisconnect if the client closes its connection.
    """
    limit, timeout = settings.max_upload_bytes, settings.receive_timeout
    if request.headers.get("content-encoding", "identity").lower() != "identity":
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
    kind = parse_options_header(request.headers.get("content-type", "application/octet-stream"))[0]
    if kind == b"multipart/form-data":
        return await _multipart(request, chunks)
    if kind == b"application/json":
        return await asyncio.to_thread(from_json, b"".join([chunk async for chunk in chunks]))
    if kind == b"application/octet-stream" or kind.startswith(b"image/"):
        return b"".join([chunk async for chunk in chunks])
    raise Problem(
        415,
        "media_type",
        f"Unsupported Content-Type. Send {ACCEPTED}; for example: {CURL}",
        {"Accept-Post": ACCEPTED},
    )


def from_json(body: bytes) -> bytes:
    """The image file in `{"image": "<base64>"}`, which may be a data: URL. Raises Problem (400)."""
    wanted = 'Send {"image": "<base64 of the file>"}.'
    shape = f"The body must be an object whose only member is image, a string. {wanted}"
    if body.count(b",") > MAX_COMMAS:
        raise Problem(400, "bad_json", shape)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "bad_json", f"The body is not valid JSON. {wanted}") from error
    if not isinstance(document, dict) or set(document) != {"image"} or not isinstance(document["image"], str):
        raise Problem(400, "bad_json", shape)
    text = document["image"]
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise Problem(400, "bad_base64", f"A data: URL must be in base64. {wanted}")
    try:
        return base64.b64decode(text.encode("ascii").translate(None, WHITESPACE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, "bad_base64", f"The member image is not valid base64. {wanted}") from error


async def _multipart(request: Request, chunks: AsyncGenerator[bytes, None]) -> bytes:
    try:
        form = await _InMemoryParser(request.headers, chunks, max_files=1, max_fields=1).parse()
    except MultiPartException as error:
        raise Problem(
            400,
            "bad_multipart",
            f"The multipart body cannot be read as one file in the field image. For example: {CURL}",
        ) from error
    parts = form.multi_items()
    if len(parts) != 1 or parts[0][0] not in FIELDS:
        raise Problem(
            400,
            "bad_multipart",
            f"The form must have one field, image, with one file; parameters belong in the query. For example: {CURL}",
        )
    part = parts[0][1]
    if not isinstance(part, UploadFile):
        raise Problem(400, "bad_multipart", f"The field {parts[0][0]} holds text, not a file. For example: {CURL}")
    return part.file.read()


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
