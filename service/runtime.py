"""What lives between start and stop: the models, the queue, the door, and whether we are ready.

One request's way is `infer`: body, queue, answer. It runs on the event loop; decoding and the engines have threads of
their own behind the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar, cast

from cachetools import LRUCache
from starlette.requests import ClientDisconnect, Request

from service.engine import devices
from service.engine.cores import usable_cores
from service.engine.engine import Result
from service.engine.isolation import EngineDeadError, EngineFailedError, NoMemoryLeftError
from service.engine.model import ModelRefusedError
from service.engine.providers import CUDA, ProviderUnavailableError, pick_provider
from service.http import problems, uploads
from service.http.connections import has_gone, when_gone
from service.http.problems import Problem, retry_later
from service.http.schemas import Seen
from service.images.decode import ImageError
from service.images.drawing import SideTooLongError
from service.models.catalogue import Catalogue, ServedModel
from service.models.store import StoreMissingError
from service.queue.batcher import Batcher, DeadlinePassedError
from service.queue.tasks import TimedResult
from service.settings import Settings
from service.telemetry import gpu_memory
from service.telemetry.metrics import Metrics

LONGEST_RETRY = 60  # seconds

T = TypeVar("T")

log = logging.getLogger(__name__)


class Terms(NamedTuple):
    """What a request asks of the queue: `timeout` in seconds from the end of its upload, `bulk` if others go first."""

    timeout: float
    bulk: bool


class Outcome(NamedTuple):
    """One image, answered; `data` are the bytes it came as."""

    seen: Seen
    result: Result
    data: bytes


class Runtime:
    """One application's state. Cheap to make; `start` loads the models, off the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.provider = ""
        self.failure: str | None = None
        self._drains_since: float | None = None
        self._catalogue: Catalogue | None = None
        self._store_unread = False
        self._batcher: Batcher | None = None
        self._painters = ThreadPoolExecutor(usable_cores(), thread_name_prefix="draw")
        self._recent: LRUCache[str, bytes] = LRUCache(settings.recent_bytes, getsizeof=len)
        self._in_flight = 0
        self.metrics.ready.set_function(lambda: self.not_ready() is None)
        self.metrics.recent_bytes.set_function(lambda: self._recent.currsize)
        self.metrics.in_flight.set_function(lambda: self._in_flight)
        self.metrics.draining_seconds.set_function(
            lambda: 0 if self._drains_since is None else time.monotonic() - self._drains_since
        )

    # --- start and stop ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads and warms up every model that keeps its contract, then looks for changes as long as it is awaited.

        A failure is kept for `/readyz` and the log.
        """
        try:
            await in_daemon(self._load)
        except (ModelRefusedError, ProviderUnavailableError, StoreMissingError) as error:
            self.fail(str(error))
        except Exception as error:
            log.exception("start-up failed")
            self.fail(f"start-up failed: {type(error).__name__}; the log has the reason")
        while self.loaded and self.settings.model_poll_seconds:
            await asyncio.sleep(self.settings.model_poll_seconds)
            await in_daemon(self._refresh)

    def stop(self) -> None:
        if self._batcher:
            self._batcher.close()
        self._painters.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """From here on `/readyz` says no, so that nobody new is sent here; who comes is still answered."""
        if self._drains_since is None:
            self._drains_since = time.monotonic()

    @property
    def draining(self) -> bool:
        return self._drains_since is not None

    def fail(self, reason: str) -> None:
        """From here on nothing is answered; whoever runs the process should end it."""
        log.error("%s", reason)
        self.failure = self.failure or reason

    def _load(self) -> None:
        settings = self.settings
        self.provider = pick_provider(settings.require_cuda)
        if self.provider == CUDA:
            gpu_memory.watch(self.metrics.registry)
        places = devices.find(
            self.provider, settings.engines, settings.engine_workers, settings.batch_pixels, settings.engine_threads
        )
        catalogue = Catalogue(settings.model_store, places, settings.allow_tf32, self.metrics)
        catalogue.refresh()
        if not catalogue.models:
            raise ModelRefusedError(f"no model in {settings.model_store} can be served{_listed(catalogue.refused)}")
        if settings.default_model and settings.default_model not in catalogue.models:
            names = ", ".join(catalogue.models)
            raise ModelRefusedError(f"DEFAULT_MODEL={settings.default_model} is not among the models served: {names}")
        decoders = (settings.decode_threads or usable_cores()) if self.provider == CUDA else 0
        self._batcher = Batcher(places, decoders, settings.max_pixels, self.metrics, self.fail)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked at every collection
        self._catalogue = catalogue

    def _refresh(self) -> None:
        assert self._catalogue is not None
        try:
            self._catalogue.refresh()
            self._store_unread = False
        except Exception as error:  # an unreadable store today is no reason to stop serving what was read yesterday
            if not self._store_unread:
                log.warning("the model store cannot be read (%s); what is served stays", type(error).__name__)
            self._store_unread = True

    # --- readiness and choice of model ---------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        return self._catalogue is not None

    @property
    def engines(self) -> dict[str, dict[int, ServedModel]]:
        return self._catalogue.models if self._catalogue else {}

    @property
    def refused(self) -> dict[str, str]:
        return self._catalogue.refused if self._catalogue else {}

    def not_ready(self) -> Problem | None:
        """Why nobody should be sent here now, or None."""
        if self.draining:
            return retry_later(503, "draining", "The service is shutting down. Try again; another may answer.", 5)
        return self.cannot_answer()

    def cannot_answer(self) -> Problem | None:
        """Why no request can be answered now, or None."""
        if self.failure:
            return retry_later(503, "failed", f"The service cannot answer: {self.failure}.", 30)
        if not self.loaded:
            return retry_later(503, "loading", "The service is still loading its models. Try again soon.", 2)
        if not self.engines:
            return retry_later(503, "no_model", "The model store is empty. Publish a model, then try again.", 30)
        return None

    @property
    def default_model(self) -> str | None:
        """The model for requests that name none: the setting's, the only one, or the one that the store prefers."""
        models = self.engines
        chosen = self.settings.default_model or (self._catalogue.default if self._catalogue else None)
        if len(models) == 1 and not self.settings.default_model:
            return next(iter(models))
        return chosen if chosen in models else None

    def engine(self, name: str | None, version: int | None) -> ServedModel:
        """The model for a request. Raises Problem: 503 not ready, 404 unknown, 422 none named and no default."""
        if problem := self.cannot_answer():
            raise problem
        models = self.engines
        served = ", ".join(models)
        name = name or self.default_model
        if name is None:
            raise Problem(422, "parameter", f"There is no default model; say which with ?model=. There is {served}.")
        if name not in models:
            raise Problem(404, "unknown_model", f"There is no such model. There is {served}.")
        versions = models[name]
        version = max(versions) if version is None else version
        if version not in versions:
            listed = ", ".join(map(str, sorted(versions)))
            raise Problem(404, "unknown_model", f"Model {name} has no such version. There is {listed}.")
        return versions[version]

    # --- one request ---------------------------------------------------------------------------------------------

    def terms(self, timeout: float | None = None, priority: str = "interactive") -> Terms:
        """What a request asks of the queue. Raises Problem (422) if it wants more time than anyone gets."""
        longest = self.settings.request_timeout
        if timeout is not None and timeout > longest:
            raise Problem(422, "parameter", f"timeout: at most {longest:g} seconds are given. Ask for less.")
        return Terms(longest if timeout is None else timeout, priority == "bulk")

    @contextlib.contextmanager
    def admitted(self, terms: Terms) -> Iterator[None]:
        """A place among the requests in flight, taken before the body is read. Raises Problem (429).

        Refused is who finds no place, and who would wait longer than the request's own timeout. Bulk requests have
        half the places, so that they never shut out the others.
        """
        assert self._batcher is not None  # there is an engine, so `_load` is through
        places = self.settings.max_in_flight
        wait = self._batcher.expected_wait()
        if self._in_flight >= (math.ceil(places / 2) if terms.bulk else places) or wait > terms.timeout:
            seconds = min(LONGEST_RETRY, max(1, math.ceil(wait)))
            raise retry_later(429, "overloaded", f"Too many requests wait. Try again in {seconds} s.", seconds)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def infer(
        self, request: Request, served: ServedModel, proposals_only: bool, terms: Terms, image_id: str | None = None
    ) -> Outcome:
        """The answer for the image in the request's body, or for a recent upload.

        Raises Problem, and Starlette's ClientDisconnect if the client goes.
        """
        began = time.perf_counter()
        with served.in_use():
            data = self._recall(image_id) if image_id else await self._read(request)
            read = time.perf_counter() - began
            answer = await self._answer(request, data, image_id, served, proposals_only, terms)
        self._remember(answer.digest, data)
        seconds = {"read": read, "decode": answer.decode, "queue": answer.queue, "inference": answer.inference}
        for stage, took in seconds.items():
            self.metrics.stage[stage].observe(took)
        seconds["total"] = time.perf_counter() - began
        return Outcome(Seen(answer.digest, answer.width, answer.height, seconds), answer.result, data)

    async def _read(self, request: Request) -> bytes:
        try:
            data = await uploads.read(request, self.settings.max_upload_bytes, self.settings.receive_timeout)
        except ClientDisconnect:
            self.metrics.cancelled.labels("disconnected", "read").inc()
            raise
        self.metrics.upload_bytes.inc(len(data))
        return data

    async def _answer(
        self,
        request: Request,
        data: bytes,
        digest: str | None,
        served: ServedModel,
        proposals_only: bool,
        terms: Terms,
    ) -> TimedResult:
        assert self._batcher is not None
        try:
            return await self._batcher.answer(data, served, proposals_only, *terms, digest, partial(when_gone, request))
        except asyncio.CancelledError:
            if not has_gone(request):
                raise
            raise ClientDisconnect from None
        except ImageError as error:
            raise problems.of_image(error) from None
        except DeadlinePassedError:
            raise _too_late(terms) from None
        except EngineDeadError:
            self.metrics.failed.labels("engine").inc()
            raise retry_later(503, "failed", "The model's engine has died. Try again; another may answer.", 5) from None
        except NoMemoryLeftError:
            raise self._no_memory() from None
        except EngineFailedError:
            self.metrics.failed.labels("engine").inc()
            raise Problem(500, "engine", "The model failed on this image. Others are not affected.") from None

    async def drawn(self, outcome: Outcome, terms: Terms, draw: Callable[[], bytes]) -> bytes:
        """An image of an answer, from a thread, of which there are few: it bounds the memory that drawing takes.

        Raises Problem: 504 when the request's time is over, 503 when there is no memory.
        """
        seconds = outcome.seen.seconds
        try:
            async with asyncio.timeout(terms.timeout - (seconds["total"] - seconds["read"])):
                return await asyncio.get_running_loop().run_in_executor(self._painters, draw)
        except TimeoutError:
            self.metrics.cancelled.labels("deadline", "encode").inc()
            raise _too_late(terms) from None
        except SideTooLongError as error:
            raise Problem(422, "parameter", str(error)) from None
        except MemoryError:
            raise self._no_memory() from None

    def _no_memory(self) -> Problem:
        self.metrics.failed.labels("out_of_memory").inc()
        detail = "There is no memory for this image now. Try again, or send a smaller one."
        return retry_later(503, "out_of_memory", detail, 5)

    def _remember(self, image_id: str, data: bytes) -> None:
        if len(data) <= self._recent.maxsize:
            self._recent[image_id] = data

    def _recall(self, image_id: str) -> bytes:
        data: bytes | None = self._recent.get(image_id)
        if data is None:
            raise Problem(
                404, "unknown_image", "No recent upload has this image_id. Send the image itself: POST /proposals."
            )
        return data


def _too_late(terms: Terms) -> Problem:
    return Problem(504, "deadline", f"No answer within {terms.timeout:g} s. Try again later.")


async def in_daemon(function: Callable[[], T]) -> T:
    """What `function` returns, from a thread that keeps nobody from ending the process, as those of a pool do."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="models", daemon=True).start()
    return await future


def _listed(refused: dict[str, str]) -> str:
    return "".join(f"; {place}: {reason}" for place, reason in refused.items())
