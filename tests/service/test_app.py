import asyncio
import signal
import subprocess
import sys
import time

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.http.routes.answers import JSON, preferred
from service.http.routes.detect import OFFERED
from service.server import Server
from service.settings import Settings


def test_importing_the_service_brings_neither_torch_nor_onnx_nor_a_model():
    code = "import service.app, sys; print(*[m for m in ('torch', 'onnx', 'scipy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_two_applications_in_a_process_do_not_share_metrics():
    one, other = (create_app(Settings()).state.runtime.metrics for _ in range(2))
    one.shared.inc()
    assert one.registry.get_sample_value("detector_shared_total") == 1
    assert other.registry.get_sample_value("detector_shared_total") == 0


def test_every_metric_is_explained():
    scrape = create_app(Settings()).state.runtime.metrics.scrape().decode()
    families = list(text_string_to_metric_families(scrape))
    assert all(family.documentation for family in families)
    ours = [family.name for family in families if family.name.startswith("detector_")]
    assert len(ours) >= 14


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("application/x-npz", "application/x-npz"),
        ("application/x-npz;q=0.5, application/json;q=0.4", "application/x-npz"),
        ("application/json, application/x-npz", JSON),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/png"),
        ("IMAGE/JPEG; q=0.5", "image/jpeg"),
        ("application/json, image/png", JSON),
        ("image/png, application/json;q=0.9", "image/png"),
        ("image/png;q=0.1, */*", JSON),
        ("image/jpeg;q=0.5, image/png;q=0.8", "image/png"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", JSON),
        ("image/png;q=0", JSON),
        ("image/png;q=junk", JSON),
        (";;;,,,", JSON),
    ],
)
def test_another_form_than_json_is_only_for_who_prefers_it(accept, expected):
    assert preferred(accept, OFFERED) == expected


def test_images_are_not_for_who_cannot_have_them():
    assert preferred("image/png, application/x-npz;q=0.1", (JSON, "application/x-npz")) == "application/x-npz"
    assert preferred("image/png", (JSON,)) == JSON


def test_an_engine_that_died_makes_the_service_unready_and_ends_it():
    app = create_app(Settings())
    runtime = app.state.runtime
    server = Server(uvicorn.Config(app), runtime)
    server._announced = True
    assert not asyncio.run(server.on_tick(0))
    runtime.fail("the engine fails on every image")
    problem = runtime.not_ready()
    assert (problem.status, problem.headers) == (503, {"Retry-After": "30"})
    assert asyncio.run(server.on_tick(0))


def test_a_signal_makes_the_service_unready_at_once():
    app = create_app(Settings(shutdown_grace=0.3))
    runtime = app.state.runtime
    server = Server(uvicorn.Config(app), runtime)
    server._announced = True
    server.handle_exit(signal.SIGTERM, None)
    assert runtime.not_ready().reason == "draining"
    assert runtime.cannot_answer().reason == "loading"  # and so, once loaded, nothing keeps it from answering
    assert not server.should_exit
    time.sleep(0.3)
    assert asyncio.run(server.on_tick(0))


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_an_impatient_signal_skips_the_grace(signals):
    app = create_app(Settings(shutdown_grace=30))
    server = Server(uvicorn.Config(app), app.state.runtime)
    server._announced = True
    for number in signals:
        server.handle_exit(number, None)
    assert server.should_exit


def test_who_shuts_down_sends_its_clients_elsewhere():
    app = create_app(Settings())

    async def connection_header() -> str | None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return (await client.get("/healthz")).headers.get("connection")

    assert asyncio.run(connection_header()) is None
    Server(uvicorn.Config(app), app.state.runtime).handle_exit(signal.SIGTERM, None)
    assert asyncio.run(connection_header()) == "close"
