"""How the routes write what they answer."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

from fastapi import Request, Response

from service.engine.model import Card
from service.http import npz
from service.http.schemas import Seen, to_json, to_npz
from service.runtime import Runtime

JSON = "application/json"


def runtime_of(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


def array_answer(runtime: Runtime, seen: Seen, card: Card, answer: dict[str, Any], media_type: str) -> Response:
    """`answer` as JSON or for NumPy."""
    began = time.perf_counter()
    body = to_npz(answer, card) if media_type == npz.MEDIA_TYPE else to_json(answer)
    return encoded_answer(runtime, seen, body, media_type, began)


def encoded_answer(runtime: Runtime, seen: Seen, body: bytes, media_type: str, began: float) -> Response:
    """`body` with the time of every stage in its header; encoding `began` then."""
    took = time.perf_counter() - began
    runtime.metrics.stage["encode"].observe(took)
    stages = seen.seconds | {"encode": took}
    timing = ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items())
    return Response(body, media_type=media_type, headers={"Server-Timing": timing})


@lru_cache(64)
def preferred(accept: str, offered: tuple[str, ...]) -> str:
    """The one of `offered` that an Accept header asks for before JSON, else JSON."""
    best, chosen = 0.0, JSON
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        # a wildcard for images means PNG, one for everything JSON
        kind = {"image/*": "image/png", "application/*": JSON, "*/*": JSON}.get(name, name)
        if weight > best and kind in offered:  # what is named first wins among equals
            best, chosen = weight, kind
    return chosen
