"""What went wrong, in the words that the client reads (RFC 9457, `application/problem+json`).

A `detail` names the fault and the remedy and is always our own sentence: decoders and runtimes put file names and
heap addresses into theirs (vLLM's CVE-2026-22778 began with an echoed Pillow message).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from service.images.decode import ImageError, TooManyPixelsError


class Problem(Exception):  # noqa: N818  RFC 9457's own word
    """A request that gets an error for an answer.

    status  HTTP status        reason   word for the metrics, one of a fixed few
    detail  fault and remedy   headers  extra response headers        more  extra members of the JSON document
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
        """The JSON members that RFC 9457 defines, then ours."""
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


def retry_later(status: int, reason: str, detail: str, seconds: int) -> Problem:
    """A problem that time alone may mend: says when to come back."""
    return Problem(status, reason, detail, headers={"Retry-After": str(seconds)})


def of_image(error: ImageError) -> Problem:
    """The answer to an upload that cannot be decoded: 413 for too many pixels, else 400."""
    detail = f"The upload cannot be used: {error}"
    if isinstance(error, TooManyPixelsError):
        return Problem(413, "too_many_pixels", detail, more={"limit_pixels": error.limit})
    return Problem(400, "not_an_image", detail)
