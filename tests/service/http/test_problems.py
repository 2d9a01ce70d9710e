import pytest
from starlette.exceptions import HTTPException

from service.admission import OverloadedError, TimeoutTooLongError
from service.engine.isolation import EngineDeadError, EngineFailedError, NoMemoryLeftError
from service.http import problems
from service.http.problems import Problem
from service.images.decode import ImageError, TooManyPixelsError
from service.images.drawing import SideTooLongError
from service.models.choice import NoDefaultModelError, UnknownModelError
from service.queue.memory import TooMuchMemoryError
from service.readiness import NotReadyError
from service.recent_uploads import UnknownImageError
from service.runtime import TooLateError


@pytest.mark.parametrize(
    ("error", "status", "reason", "retry_after"),
    [
        (Problem(418, "teapot", ""), 418, "teapot", None),
        (NotReadyError("loading"), 503, "loading", "2"),
        (NotReadyError("no_model"), 503, "no_model", "30"),
        (NotReadyError("draining"), 503, "draining", "5"),
        (NotReadyError("failed", "the engine is dead"), 503, "failed", "30"),
        (TimeoutTooLongError(30), 422, "parameter", None),
        (OverloadedError(7), 429, "overloaded", "7"),
        (NoDefaultModelError("none"), 422, "parameter", None),
        (UnknownModelError("unknown"), 404, "unknown_model", None),
        (UnknownImageError(), 404, "unknown_image", None),
        (ImageError("it is a text", "Send an image."), 400, "not_an_image", None),
        (TooManyPixelsError("30 x 20", 500), 413, "too_many_pixels", None),
        (TooMuchMemoryError(2, 1), 413, "too_much_memory", None),
        (TooLateError(1.5), 504, "deadline", None),
        (EngineFailedError(), 500, "engine", None),
        (EngineDeadError(), 503, "failed", "5"),
        (NoMemoryLeftError(), 503, "out_of_memory", "5"),
        (SideTooLongError("too long"), 422, "parameter", None),
        (HTTPException(404), 404, "unknown_path", None),
        (HTTPException(405, headers={"Allow": "POST"}), 405, "method", None),
        (HTTPException(400, "bad"), 400, "http", None),
    ],
)
def test_each_error_has_its_status_and_reason(error, status, reason, retry_after):
    problem = problems.of(error)
    assert (problem.status, problem.reason, problem.headers.get("Retry-After")) == (status, reason, retry_after)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotReadyError("failed", "the engine is dead"), "the engine is dead"),
        (TimeoutTooLongError(30), "at most 30 s"),
        (OverloadedError(7), "in 7 s"),
        (UnknownModelError("Unknown model. Available: a."), "Available: a."),
        (ImageError("it is a text", "Send an image."), "The upload is a text"),
        (TooLateError(1.5), "within 1.5 s"),
        (HTTPException(405, headers={"Allow": "POST"}), "Allowed: POST"),
    ],
)
def test_the_detail_of_a_problem_names_the_fault(error, words):
    assert words in problems.of(error).detail


def test_the_problem_for_too_many_pixels_names_the_limit():
    assert problems.of(TooManyPixelsError("30 x 20", 500)).document()["limit_pixels"] == 500


def test_the_problem_for_too_much_memory_names_bytes_limit_and_setting():
    document = problems.of(TooMuchMemoryError(300 * 2**20 + 1, 200 * 2**20)).document()
    assert (document["needed_bytes"], document["limit_bytes"]) == (300 * 2**20 + 1, 200 * 2**20)
    assert "301 MiB" in document["detail"]
    assert "200 MiB (3/4 of MEMORY_BUDGET)" in document["detail"]


def test_an_internal_error_has_no_problem_of_its_own():
    with pytest.raises(TypeError):
        problems.of(KeyError())
