"""How the routes write what they answer."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request, Response

from service.runtime import Runtime
from service.schemas import Seen, to_json


def runtime_of(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


def json_answer(runtime: Runtime, seen: Seen, answer: dict[str, Any]) -> Response:
    began = time.perf_counter()
    body = to_json(answer)
    return encoded_answer(runtime, seen, body, "application/json", began)


def encoded_answer(runtime: Runtime, seen: Seen, body: bytes, media_type: str, began: float) -> Response:
    """`body` with the time of every stage in its header; encoding `began` then."""
    took = time.perf_counter() - began
    runtime.metrics.stage["encode"].observe(took)
    stages = seen.seconds | {"encode": took}
    timing = ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items())
    return Response(body, media_type=media_type, headers={"Server-Timing": timing})
