"""Every error as a problem document (RFC 9457, `application/problem+json`).

A `detail` names the fault and the remedy. It never quotes a library's message, because decoders and runtimes put file
names and heap addresses into theirs (vLLM's CVE-2026-22778 began with a quoted Pillow message).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from service.admission import OverloadedError, TimeoutTooLongError
from service.engine.isolation import EngineDeadError, EngineFailedError, NoMemoryLeftError
from service.http.answers import image_warnings
from service.images.decode import DamagedImageError, ImageError, TooManyPixelsError
from service.images.drawing import SideTooLongError
from service.models.choice import NoDefaultModelError, NotServedError, UnknownModelError
from service.queue.memory import TooMuchMemoryError
from service.readiness import NotReadyError
from service.recent_uploads import UnknownImageError
from service.runtime import TooLateError


class Problem(Exception):  # noqa: N818  the term of RFC 9457
    """An error with which a request is answered.

    status   HTTP status
    reason   one of a few fixed words, for the metrics and for programs
    detail   the fault and the remedy
    headers  extra response headers
    more     extra members of the JSON document
    """

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        """The members that RFC 9457 defines, then those of this service."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        if request_id:
            document["request_id"] = request_id
        return document | self.more


def of(error: Exception) -> Problem:
    """The problem for a request that ended with `error`. Raises TypeError for an error that is not in ANSWERED."""
    for kind in type(error).__mro__:
        if kind in _PROBLEMS:
            problem: Problem = _PROBLEMS[kind](error)
            return problem
    raise TypeError(f"no problem describes {type(error).__name__}")


def _retry_later(status: int, reason: str, detail: str, seconds: int) -> Problem:
    """A temporary problem. Its Retry-After header asks the client to try again after `seconds`."""
    return Problem(status, reason, detail, headers={"Retry-After": str(seconds)})


def _not_ready(error: NotReadyError) -> Problem:
    detail, seconds = {
        "draining": ("The service is shutting down. Try again; another instance may answer.", 5),
        "failed": (f"The service cannot answer: {error.failure}.", 30),
        "loading": ("The service is still loading its models. Try again soon.", 2),
        "no_model": (_no_model(error.failure), 30),
    }[error.reason]
    return _retry_later(503, error.reason, detail, seconds)


def _no_model(reasons: str) -> str:
    if not reasons:
        return "The model store is empty. Publish a model, then try again."
    return f"No model in the store is served: {reasons}. Correct this, or publish a model, then try again."


def _not_served(error: NotServedError) -> Problem:
    return _retry_later(503, error.reason, str(error), 5)


def _overloaded(error: OverloadedError) -> Problem:
    detail = f"Too many requests are waiting. Try again in {error.retry_after} s."
    return _retry_later(429, "overloaded", detail, error.retry_after)


def _bad_image(error: ImageError) -> Problem:
    about_it = error.fault.startswith("it ")
    subject = f"The upload {error.fault[3:]}" if about_it else f"The upload is broken: {error.fault}"
    detail = f"{subject}. {error.remedy}"
    if isinstance(error, TooManyPixelsError):
        return Problem(413, "too_many_pixels", detail, more={"limit_pixels": error.limit})
    if isinstance(error, DamagedImageError):
        return Problem(400, "damaged_image", detail, more={"warnings": image_warnings(error.warnings)})
    return Problem(400, "not_an_image", detail)


def _too_much_memory(error: TooMuchMemoryError) -> Problem:
    needed, limit = (math.ceil(size / 2**20) for size in (error.needed, error.limit))
    detail = (
        f"The image may need {needed} MiB of memory; the limit for one image is {limit} MiB (3/4 of MEMORY_BUDGET). "
        "Send a smaller one."
    )
    return Problem(413, "too_much_memory", detail, more={"needed_bytes": error.needed, "limit_bytes": error.limit})


def _engine_failed(error: EngineFailedError) -> Problem:
    if isinstance(error, EngineDeadError):
        return _retry_later(503, "failed", "The model's engine has died. Try again; another instance may answer.", 5)
    if isinstance(error, NoMemoryLeftError):
        detail = "There is not enough memory for this image now. Try again, or send a smaller one."
        return _retry_later(503, "out_of_memory", detail, 5)
    return Problem(500, "engine", "The model failed on this image. Other images are not affected.")


def _not_routed(error: HTTPException) -> Problem:
    """The problem for an unknown path, or for a method that the path does not support."""
    allowed = (error.headers or {}).get("Allow", "others")
    reason, detail = {
        404: ("unknown_path", "No such path. GET /docs lists all endpoints."),
        405: ("method", f"Method not allowed for this path. Allowed: {allowed}."),
    }.get(error.status_code, ("http", str(error.detail)))
    return Problem(error.status_code, reason, detail, error.headers)


_PROBLEMS: dict[type, Callable[[Any], Problem]] = {
    Problem: lambda error: error,
    NotReadyError: _not_ready,
    TimeoutTooLongError: lambda error: Problem(422, "parameter", f"timeout must be at most {error.longest:g} s."),
    OverloadedError: _overloaded,
    NoDefaultModelError: lambda error: Problem(422, "parameter", str(error)),
    NotServedError: _not_served,
    UnknownModelError: lambda error: Problem(404, "unknown_model", str(error)),
    UnknownImageError: lambda _: Problem(
        404, "unknown_image", "No recent upload has this image_id. Send the image itself: POST /proposals."
    ),
    ImageError: _bad_image,
    TooMuchMemoryError: _too_much_memory,
    TooLateError: lambda error: Problem(504, "deadline", f"No answer within {error.timeout:g} s. Try again later."),
    EngineFailedError: _engine_failed,
    SideTooLongError: lambda error: Problem(422, "parameter", str(error)),
    HTTPException: _not_routed,
}

ANSWERED = tuple(_PROBLEMS)  # the errors that are answered with a problem document; subclasses too
