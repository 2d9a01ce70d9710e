"""Random mixtures of images get the same results as each image alone, so no result depends on its neighbours."""

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from service.engine.devices import Budget, Device
from service.engine.engine import Engine
from service.engine.isolation import EngineFailedError
from service.engine.providers import CPU, CUDA
from service.images.decode import ImageError, decode
from service.images.fit import Canvas
from service.queue.batcher import Batcher
from service.queue.memory import MemoryBudget
from service.telemetry.metrics import Metrics

Asked = tuple[int, bool, bool, float]  # index of the image, proposals only, bulk, delay in milliseconds


class Alone:
    """A served model on any device, and the result for each of `uploads` when it is run alone."""

    def __init__(self, engine: Engine, uploads: list[bytes]) -> None:
        self.engine, self.uploads = engine, uploads
        self.geometry = engine.card.geometry
        self.expected = {(n, only): self._run(data, only) for n, data in enumerate(uploads) for only in (False, True)}

    def engine_on(self, device: Device) -> Engine:
        return self.engine

    def _run(self, data: bytes, proposals_only: bool) -> Any:
        try:
            canvas: Canvas = decode(data, self.geometry)
        except ImageError as error:
            return str(error)
        try:
            return self.engine.run([canvas], proposals_only)[0]
        except Exception:
            return EngineFailedError


async def ask(batcher: Batcher, alone: Alone, mixture: list[Asked]) -> list[Any]:
    async def one(number: int, asked: Asked) -> Any:
        which, only, bulk, delay = asked
        data = alone.uploads[which]
        await asyncio.sleep(delay / 1000)
        # half of the requests have bytes of their own, and half share them with other requests
        return await batcher.answer(data + b"%d" % number * (number % 2), alone, only, 30, bulk)

    return await asyncio.gather(*(one(*each) for each in enumerate(mixture)), return_exceptions=True)


def check(alone: Alone, mixture: list[Asked], answers: list[Any], tolerance: float) -> None:
    for (which, only, _, _), answer in zip(mixture, answers, strict=True):
        expected = alone.expected[which, only]
        if isinstance(expected, str):
            assert isinstance(answer, ImageError)
            assert str(answer) == expected
        elif expected is EngineFailedError:
            assert isinstance(answer, EngineFailedError)
        else:
            for name in ("boxes", "scores", "labels", "proposals", "objectness"):
                mine, single = getattr(answer.result, name), getattr(expected, name)
                np.testing.assert_allclose(mine, single, rtol=0, atol=tolerance)


def mixtures(images: int, most: int) -> st.SearchStrategy[list[Asked]]:
    asked = st.tuples(st.integers(0, images - 1), st.booleans(), st.booleans(), st.sampled_from([0, 0, 0, 1]))
    return st.lists(asked, min_size=2, max_size=most)


def batcher(gpu: bool, devices: int, runs: int, pixels: int, fatal: list[str], lanes: int = 0) -> Batcher:
    """A batcher that adds the reasons why engines die to `fatal`. The event loop would only log an exception."""
    kind = CUDA if gpu else CPU
    places = [Device(kind, index, runs, 1 if gpu else 2, not gpu, 1, Budget(pixels), lanes) for index in range(devices)]
    return Batcher(places, 2 * gpu, 1, 1_000_000, MemoryBudget(), Metrics(), fatal.append)


def answer_any_mixture(waiting: Batcher, alone: Alone, examples: int, most: int, tolerance: float) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mixtures(len(alone.uploads), most))
    def any_mixture(mixture: list[Asked]) -> None:
        check(alone, mixture, loop.run_until_complete(ask(waiting, alone, mixture)), tolerance)

    loop = asyncio.new_event_loop()
    try:
        any_mixture()
    finally:
        waiting.close()
        loop.close()


@pytest.mark.parametrize(
    ("gpu", "devices", "runs", "lanes", "budget"),
    [(False, 1, 2, 2, 4), (False, 2, 1, 1, 100), (True, 1, 1, 2, 2), (True, 2, 2, 4, 3)],
)
def test_random_mixtures_get_the_same_results_as_each_image_alone(plain, encode, gpu, devices, runs, lanes, budget):
    sizes = [(96, 64), (64, 96), (200, 133), (30, 40), (96, 96), (500, 20)]
    uploads = [
        encode(Image.new("RGB", size, (level, level, level)))
        for level, size in zip(range(10, 250, 20), sizes * 2, strict=True)
    ]
    white = encode(Image.new("RGB", (96, 64), "white"))  # this graph fails on it
    alone = Alone(plain(fails_on_white=True), [*uploads, white, b"hello", uploads[0][: len(uploads[0]) // 2]])
    assert sum(isinstance(expected, str) for expected in alone.expected.values()) == 4
    fatal: list[str] = []
    waiting = batcher(gpu, devices, runs, budget * 64 * 96, fatal, lanes)

    answer_any_mixture(waiting, alone, examples=1000, most=10, tolerance=0)
    assert fatal == []


def test_mixtures_on_the_embedded_model_get_the_same_results_as_each_image_alone(embedded_engine, encode):
    uploads = []
    for number, (width, height) in enumerate([(320, 240), (240, 320), (640, 200), (100, 100), (33, 400)]):
        image = Image.new("RGB", (width, height), (200, 210, 190 + number))
        ImageDraw.Draw(image).ellipse((10, 10, width // 2, height // 2), fill=(120, 30 * number, 20))
        uploads.append(encode(image, "JPEG"))
    alone = Alone(embedded_engine, [*uploads, uploads[0][:-200]])
    fatal: list[str] = []
    waiting = batcher(False, 1, 2, 1_000_000, fatal)

    answer_any_mixture(waiting, alone, examples=30, most=8, tolerance=1e-3)
    assert fatal == []
