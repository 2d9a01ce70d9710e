"""What a request keeps, and how long it may take, beyond what can be told over HTTP."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest
from PIL import Image

from service.app import create_app
from service.http.problems import Problem
from service.http.schemas import Seen
from service.runtime import Outcome, Runtime, Terms
from service.settings import Settings
from tests.service import graphs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    graphs.publish(tmp_path / "store")
    return tmp_path / "store"


def test_a_request_without_an_answer_leaves_nothing_for_the_garbage_collector(store, encode):
    """What waits for the collector keeps the image's bytes, of which few uploads fill the memory."""
    image = encode(Image.new("RGB", (96, 64), "grey"))

    async def test():
        app = create_app(Settings(model_store=store, model_poll_seconds=0))
        await app.state.runtime.start()
        assert await post(app, image) == 200
        gc.collect()
        gc.disable()
        try:
            assert await post(app, b"no image") == 400
            assert await post(app, image[:-30]) == 400
            assert await post(app, image, b"timeout=1e-9") == 504
            await asyncio.sleep(0.1)
            return gc.collect()
        finally:
            gc.enable()
            app.state.runtime.stop()

    assert asyncio.run(test()) == 0


async def post(app, body: bytes, query: bytes = b"") -> int:
    """The status that `app` answers, asked without a server, whose own objects come and go."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive() -> dict:
        return waiting.pop()

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"content-type", b"image/png"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/detect", "query_string": query, "headers": headers}
    await app(scope | {"app": app, "state": {}}, receive, send)
    return sent[0]["status"]


def drawn(runtime: Runtime, timeout: float, draw) -> bytes:
    outcome = Outcome(Seen("", 1, 1, {"read": 9.0, "total": 9.0}), None, b"")
    return asyncio.run(runtime.drawn(outcome, Terms(timeout, False), draw))


def test_drawing_counts_towards_the_time_that_a_request_has():
    runtime, over = Runtime(Settings()), threading.Event()
    assert drawn(runtime, 10, lambda: b"picture") == b"picture"
    with pytest.raises(Problem) as caught:
        drawn(runtime, 0.1, lambda: over.wait(10))
    over.set()
    assert (caught.value.status, caught.value.reason) == (504, "deadline")
    labels = {"reason": "deadline", "stage": "encode"}
    assert runtime.metrics.registry.get_sample_value("detector_cancelled_total", labels) == 1


def test_a_drawing_that_there_is_no_memory_for_is_tried_again_later():
    def scarce() -> bytes:
        raise MemoryError

    with pytest.raises(Problem) as caught:
        drawn(Runtime(Settings()), 10, scarce)
    assert (caught.value.status, caught.value.reason) == (503, "out_of_memory")
