"""Memory held by requests, ways in which requests end, and readiness, where HTTP clients cannot observe them."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest
from PIL import Image

from service.admission import Admitted
from service.app import create_app
from service.engine.isolation import EngineDeadError, EngineFailedError, NoMemoryLeftError
from service.images.decode import ImageError
from service.queue.batcher import DeadlinePassedError
from service.readiness import NotReadyError
from service.runtime import ClientGoneError, Inference, Runtime, TooLateError
from service.settings import Settings
from tests.service import graphs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    graphs.publish(tmp_path / "store")
    return tmp_path / "store"


def test_a_refused_request_leaves_nothing_for_the_garbage_collector(store, encode):
    """Reference cycles would keep uploads in memory until the garbage collector runs."""
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
    """The status of the answer of `app`. There is no server, because its own objects would disturb the count."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive() -> dict:
        return waiting.pop()

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"content-type", b"image/png"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/detect", "query_string": query, "headers": headers}
    scope |= {"raw_path": b"/detect", "http_version": "1.1", "app": app, "state": {}}
    await app(scope, receive, send)
    return sent[0]["status"]


class Stub:
    """A drawing whose bytes `make` returns."""

    def __init__(self, make) -> None:
        self.make = make

    def draw(self, before_pixels=None) -> bytes:
        return self.make()


def drawn(runtime: Runtime, timeout: float, make) -> bytes:
    inference = Inference("", 1, 1, None, {"read": 9.0, "total": 9.0})
    return asyncio.run(runtime.drawn(inference, Admitted(timeout, False, "", 0.0), Stub(make), lambda _: None))  # type: ignore[arg-type]


def test_the_deadline_covers_drawing_too():
    runtime, over = Runtime(Settings()), threading.Event()
    assert drawn(runtime, 10, lambda: b"image") == b"image"
    with pytest.raises(TooLateError) as caught:
        drawn(runtime, 0.1, over.wait)
    over.set()
    assert caught.value.timeout == 0.1
    labels = {"reason": "deadline", "stage": "encode"}
    assert runtime.metrics.registry.get_sample_value("detector_cancelled_total", labels) == 1


def test_drawing_without_enough_memory_is_counted_as_a_failure():
    def scarce() -> bytes:
        raise MemoryError

    runtime = Runtime(Settings())
    with pytest.raises(NoMemoryLeftError):
        drawn(runtime, 10, scarce)
    assert runtime.metrics.registry.get_sample_value("detector_failed_total", {"reason": "out_of_memory"}) == 1


# --- a request that ends while it is in the queue -----------------------------------------------------------------


class QueueThatRaises:
    """A queue that raises `error`, or without one waits until the client has disconnected."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def answer(self, data, model, proposals_only, timeout, bulk, others, image_id, when_gone):
        if self.error:
            raise self.error
        waiting = asyncio.get_running_loop().create_future()
        when_gone(waiting.cancel)
        await waiting

    def expected_wait(self):
        return 0.0


def infer(runtime: Runtime, queue: QueueThatRaises) -> None:
    runtime._batcher = queue  # type: ignore[assignment]  # noqa: SLF001  it is made only when real models are loaded

    async def test():
        admitted = Admitted(1.5, False, "", 0.0)
        await runtime.infer(b"", None, False, admitted, asyncio.get_running_loop().call_soon, "alice")

    asyncio.run(test())


def test_a_client_that_disconnects_ends_the_inference():
    with pytest.raises(ClientGoneError):
        infer(Runtime(Settings()), QueueThatRaises())


def test_a_deadline_that_passes_in_the_queue_names_the_timeout():
    with pytest.raises(TooLateError) as caught:
        infer(Runtime(Settings()), QueueThatRaises(DeadlinePassedError()))
    assert caught.value.timeout == 1.5


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EngineFailedError(), "engine"), (EngineDeadError(), "engine"), (NoMemoryLeftError(), "out_of_memory")],
)
def test_an_engine_failure_is_counted(error, reason):
    runtime = Runtime(Settings())
    with pytest.raises(type(error)):
        infer(runtime, QueueThatRaises(error))
    assert runtime.metrics.registry.get_sample_value("detector_failed_total", {"reason": reason}) == 1


def test_an_image_that_cannot_be_decoded_is_not_a_failure_of_the_service():
    runtime = Runtime(Settings())
    with pytest.raises(ImageError):
        infer(runtime, QueueThatRaises(ImageError("it is broken", "Send it again.")))
    assert all(not sample.value for family in runtime.metrics.failed.collect() for sample in family.samples)


# --- readiness -------------------------------------------------------------------------------------------------------


def test_a_draining_service_is_not_ready_but_still_answers(store):
    async def test() -> Runtime:
        runtime = Runtime(Settings(model_store=store, model_poll_seconds=0))
        assert runtime.readiness.not_ready().reason == "loading"
        await runtime.start()
        assert runtime.readiness.not_ready() is None
        runtime.readiness.drain()
        runtime.stop()
        return runtime

    runtime = asyncio.run(test())
    assert runtime.readiness.not_ready().reason == "draining"
    assert runtime.readiness.cannot_answer() is None
    runtime.readiness.fail("the engine fails on every image")
    assert (runtime.readiness.cannot_answer().reason, runtime.readiness.failure) == (
        "failed",
        "the engine fails on every image",
    )


def test_the_service_fails_at_start_if_the_store_has_no_usable_model(tmp_path):
    (tmp_path / "shapes" / "1").mkdir(parents=True)
    runtime = Runtime(Settings(model_store=tmp_path, model_poll_seconds=0))  # no second scan
    asyncio.run(runtime.start())
    assert runtime.readiness.failure.startswith("no model in the store can be served; shapes/1: ")
    with pytest.raises(NotReadyError):
        runtime.readiness.model(None, None)
