"""What lives between start and stop: the models, the queue, the decoding threads, and whether we are ready.

One request's way is `infer`: body, canvas, batch, result. All of it runs on the event loop but for decoding and the
engine, which have threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cachetools import LRUCache
from starlette.requests import ClientDisconnect, Request

from service import images, store, uploads
from service.batcher import Batcher, DeadlinePassedError, EngineFailedError, Key
from service.engine import CPU, CUDA, Engine, Result, pick_provider, usable_cores
from service.images import Canvas, Geometry
from service.metrics import Metrics
from service.problems import Problem, retry_later
from service.schemas import Seen
from service.settings import Settings
from service.store import Refused

# Bounds memory: what a batch needs grows with its pixels. On the CPU a picture in a batch of 16 takes 8 % longer than
# one alone (measured with the embedded model), and its members wait for each other.
BATCH_PIXELS = {CUDA: 8_000_000, CPU: 250_000}

T = TypeVar("T")

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """One picture, answered; `data` are the bytes it came as."""

    seen: Seen
    result: Result
    data: bytes


class Runtime:
    """One application's state. Cheap to make; `start` loads the models, off the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.engines: dict[str, dict[int, Engine]] = {}
        self.refused: dict[str, str] = {}
        self._preferred: str | None = None
        self.provider = ""
        self.loaded = self.draining = False
        self.failure: str | None = None
        self._batcher: Batcher | None = None
        self._decoders = ThreadPoolExecutor(settings.decode_threads or usable_cores(), thread_name_prefix="decode")
        self._recent: LRUCache[str, bytes] = LRUCache(settings.recent_bytes, getsizeof=len)
        self._in_flight = 0
        self.metrics.ready.set_function(lambda: self.not_ready() is None)
        self.metrics.recent_bytes.set_function(lambda: self._recent.currsize)
        self.metrics.in_flight.set_function(lambda: self._in_flight)

    # --- start and stop ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads and warms up every model that keeps its contract. A failure is kept for `/readyz` and the log."""
        try:
            await asyncio.to_thread(self._load)
        except Refused as error:
            self.fail(str(error))
        except Exception as error:
            log.exception("start-up failed")
            self.fail(f"start-up failed: {type(error).__name__}; the log has the reason")

    def stop(self) -> None:
        if self._batcher:
            self._batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def fail(self, reason: str) -> None:
        """From here on nothing is answered; whoever runs the process should end it."""
        log.error("%s", reason)
        self.failure = self.failure or reason

    def _load(self) -> None:
        settings = self.settings
        self.provider = pick_provider(settings.require_cuda)
        batch_pixels = settings.batch_pixels or BATCH_PIXELS[self.provider]
        for directory in store.directories(settings.model_store):
            place = f"{directory.parent.name}/{directory.name}"
            try:
                self._load_one(directory, batch_pixels)
            except Refused as error:
                log.warning("model %s is not served: %s", place, error)
                self.refused[place] = str(error)
        if not self.engines:
            raise Refused(f"no model in {settings.model_store} can be served{_listed(self.refused)}")
        if settings.default_model and settings.default_model not in self.engines:
            names = ", ".join(self.engines)
            raise Refused(f"DEFAULT_MODEL={settings.default_model} is not among the models served: {names}")
        self._preferred = store.default_name(settings.model_store)
        workers = settings.engine_workers or (1 if self.provider == CUDA else usable_cores())
        self._batcher = Batcher(workers, batch_pixels, self.metrics, self.fail)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked at every collection
        self.loaded = True

    def _load_one(self, directory: Path, batch_pixels: int) -> None:
        engine = Engine(store.load(directory), self.provider, self.settings.engine_threads, self.settings.allow_tf32)
        try:
            engine.warm_up(batch_pixels)
        except Exception as error:
            log.exception("warming up %s", directory)
            raise Refused("it fails on a blank picture; the log has the reason") from error
        card = engine.card
        self.engines.setdefault(card.name, {})[card.version] = engine
        self.metrics.model.labels(card.name, str(card.version)).info({"provider": self.provider, "sha256": card.sha256})

    # --- readiness and choice of model ---------------------------------------------------------------------------

    def not_ready(self) -> Problem | None:
        """Why no request can be answered now, or None."""
        if self.failure:
            return retry_later(503, "failed", f"The service cannot answer: {self.failure}.", 30)
        if not self.loaded:
            return retry_later(503, "loading", "The service is still loading its models. Try again soon.", 2)
        if self.draining:
            return retry_later(503, "draining", "The service is shutting down. Try again; another may answer.", 5)
        return None

    @property
    def default_model(self) -> str | None:
        """The model for requests that name none: the setting's, the only one, or the one that the store prefers."""
        if self.settings.default_model:
            return self.settings.default_model
        if len(self.engines) == 1:
            return next(iter(self.engines))
        return self._preferred if self._preferred in self.engines else None

    def engine(self, name: str | None, version: int | None) -> Engine:
        """The engine for a request. Raises Problem: 503 not ready, 404 unknown, 422 none named and no default."""
        if problem := self.not_ready():
            raise problem
        served = ", ".join(self.engines)
        name = name or self.default_model
        if name is None:
            raise Problem(422, "parameter", f"Several models are served; say which with ?model=. There is {served}.")
        if name not in self.engines:
            raise Problem(404, "unknown_model", f"There is no such model. There is {served}.")
        versions = self.engines[name]
        version = max(versions) if version is None else version
        if version not in versions:
            listed = ", ".join(map(str, sorted(versions)))
            raise Problem(404, "unknown_model", f"Model {name} has no such version. There is {listed}.")
        return versions[version]

    # --- one request ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests in flight, taken before the body is read. Raises Problem (429)."""
        if self._in_flight >= self.settings.max_in_flight:
            raise retry_later(429, "overloaded", "Too many requests are in flight. Try again soon.", 1)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def infer(
        self, request: Request, engine: Engine, proposals_only: bool, image_id: str | None = None
    ) -> Outcome:
        """The answer for the picture in the request's body, or for a recent upload.

        Raises Problem, and Starlette's ClientDisconnect if the client goes.
        """
        began = time.perf_counter()
        seconds: dict[str, float] = {}
        if image_id:
            data = self._recall(image_id)
        else:
            try:
                data = await uploads.read(request, self.settings.max_upload_bytes, self.settings.receive_timeout)
            except ClientDisconnect:
                self.metrics.cancelled.labels("disconnected", "read").inc()
                raise
            self.metrics.upload_bytes.inc(len(data))
        seconds["read"] = time.perf_counter() - began
        outcome = await unless_gone(request, self._answer(data, engine, proposals_only, seconds))
        for stage, took in seconds.items():
            self.metrics.stage[stage].observe(took)
        seconds["total"] = time.perf_counter() - began
        return outcome

    async def _answer(self, data: bytes, engine: Engine, proposals_only: bool, seconds: dict[str, float]) -> Outcome:
        began = time.perf_counter()
        timeout = self.settings.request_timeout
        image_id, canvas = await self._decode(data, engine.card.geometry, timeout)
        self._remember(image_id, data)
        seconds["decode"] = time.perf_counter() - began
        assert self._batcher is not None  # there are engines, so `_load` is through
        try:
            answer = await self._batcher.submit(
                Key(engine, canvas.size, proposals_only), canvas, timeout - seconds["decode"]
            )
        except DeadlinePassedError:
            raise self._too_late() from None
        except EngineFailedError:
            self.metrics.failed.labels("engine").inc()
            raise Problem(500, "engine", "The model failed on this picture. Others are not affected.") from None
        seconds["queue"], seconds["inference"] = answer.queue, answer.inference
        return Outcome(Seen(image_id, canvas.width, canvas.height, seconds), answer.result, data)

    async def _decode(self, data: bytes, geometry: Geometry, timeout: float) -> tuple[str, Canvas]:
        try:
            async with asyncio.timeout(timeout):
                return await self.in_thread(_identify_and_decode, data, geometry, self.settings.max_pixels)
        except TimeoutError:
            self.metrics.cancelled.labels("deadline", "decode").inc()
            raise self._too_late() from None
        except asyncio.CancelledError:
            self.metrics.cancelled.labels("disconnected", "decode").inc()
            raise

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function` in one of the decoding threads, whose number bounds the memory that decoding takes."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    def _remember(self, image_id: str, data: bytes) -> None:
        if len(data) <= self._recent.maxsize:
            self._recent[image_id] = data

    def _recall(self, image_id: str) -> bytes:
        data: bytes | None = self._recent.get(image_id)
        if data is None:
            raise Problem(
                404, "unknown_image", "No recent upload has this image_id. Send the picture itself: POST /proposals."
            )
        return data

    def _too_late(self) -> Problem:
        return Problem(504, "deadline", f"No answer within {self.settings.request_timeout:g} s. Try again later.")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; if the client goes first, the work is cancelled. Raises ClientDisconnect then."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _identify_and_decode(data: bytes, geometry: Geometry, max_pixels: int) -> tuple[str, Canvas]:
    return hashlib.sha256(data).hexdigest(), images.decode(data, geometry, max_pixels)


def _listed(refused: dict[str, str]) -> str:
    return "".join(f"; {place}: {reason}" for place, reason in refused.items())
