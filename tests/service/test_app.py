import asyncio
import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import Settings


def test_importing_the_service_imports_neither_torch_nor_onnx():
    code = "import service.app, sys; print(*[m for m in ('torch', 'onnx', 'scipy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_two_applications_in_one_process_have_separate_metrics():
    one, other = (create_app(Settings()).state.runtime.metrics for _ in range(2))
    one.shared.inc()
    assert one.registry.get_sample_value("detector_shared_total") == 1
    assert other.registry.get_sample_value("detector_shared_total") == 0


def test_every_metric_has_a_help_text():
    scrape = create_app(Settings()).state.runtime.metrics.scrape().decode()
    families = list(text_string_to_metric_families(scrape))
    assert all(family.documentation for family in families)
    ours = [family.name for family in families if family.name.startswith("detector_")]
    assert len(ours) >= 14


VERSION = "must be a whole number in decimal digits, at least 0 and at most 9223372036854775807"


@pytest.mark.parametrize(("method", "path"), [("GET", "/models/x"), ("POST", "/detect"), ("POST", "/proposals")])
def test_every_route_answers_an_error_with_the_same_problem(method, path):
    app = create_app(Settings())  # it never starts, so it has no models

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.request(method, path), await client.request(method, f"{path}?version=-1&nonsense=1")

    loading, bad = asyncio.run(ask())
    assert (loading.status_code, loading.headers["retry-after"]) == (503, "2")
    assert loading.headers["content-type"] == "application/problem+json"
    assert loading.json() == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "The service is still loading its models. Try again soon.",
        "reason": "loading",
        "request_id": loading.headers["x-request-id"],
    }
    assert (bad.status_code, bad.json()["reason"]) == (422, "parameter")
    assert bad.json()["errors"] == [
        {"parameter": "version", "detail": VERSION},
        {"parameter": "nonsense", "detail": "unknown parameter"},
    ]
    metrics = app.state.runtime.metrics.registry
    assert metrics.get_sample_value("detector_rejected_total", {"reason": "loading"}) == 1
    assert metrics.get_sample_value("detector_rejected_total", {"reason": "parameter"}) == 1
    route = "/models/{name}" if path == "/models/x" else path
    for status in ("503", "422"):
        labels = {"method": method, "route": route, "status": status}
        assert metrics.get_sample_value("detector_request_seconds_count", labels) == 1


def test_the_application_declares_no_dependencies_because_its_routes_would_ignore_them():
    assert create_app(Settings()).router.dependencies == []


def test_a_problem_lists_at_most_ten_bad_parameters_and_shortens_long_names():
    app = create_app(Settings())
    query = "&".join(f"{number:0>300}=1" for number in range(20))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post(f"/detect?{query}")

    errors = asyncio.run(ask()).json()["errors"]
    assert [len(each["parameter"]) for each in errors] == [100] * 10
