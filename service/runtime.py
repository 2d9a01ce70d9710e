"""The running service: loads its models, owns its queue, and answers one image at a time, from start to stop.

Everything here runs on the event loop, except for loading models and drawing boxes, which have their own threads. The
queue has further threads for decoding and inference.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar, cast

from service.admission import Admission, Admitted
from service.engine import devices
from service.engine.card import shortened
from service.engine.cores import usable_cores
from service.engine.engine import Result
from service.engine.isolation import EngineFailedError, NoMemoryLeftError
from service.engine.model import ModelRefusedError
from service.engine.providers import CUDA, ProviderUnavailableError, pick_provider
from service.models.catalogue import Catalogue
from service.models.served_model import ServedModel
from service.models.store import ModelPlace, StoreMissingError, directories, parse_place
from service.queue.batcher import Batcher, DeadlinePassedError
from service.readiness import Readiness
from service.recent_uploads import RecentUploads
from service.settings import Settings
from service.telemetry import gpu_memory
from service.telemetry.metrics import Metrics

T = TypeVar("T")

log = logging.getLogger(__name__)


class TooLateError(Exception):
    """The request had no answer `timeout` seconds after the end of its upload."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.timeout = timeout


class ClientGoneError(Exception):
    """The client disconnected before it received its answer."""


class Inference(NamedTuple):
    """What a model found in one image.

    image_id       SHA-256 of the upload's bytes
    width, height  of the upright image, in pixels
    result         boxes in pixels of the upright image
    seconds        by stage: read, decode, queue, inference, and total since admission
    """

    image_id: str
    width: int
    height: int
    result: Result
    seconds: Mapping[str, float]


class Runtime:
    """One application's state. Creating it is cheap; `start` loads the models, off the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.provider = ""
        self.readiness = Readiness()
        self.admission = Admission(settings.max_in_flight, settings.request_timeout, self._expected_wait)
        self.recent = RecentUploads(settings.recent_bytes)
        self._served = False  # whether any model ever was
        self._batcher: Batcher | None = None
        self._drawing_threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="draw")
        self.metrics.ready.set_function(lambda: self.readiness.not_ready() is None)
        self.metrics.recent_bytes.set_function(lambda: self.recent.size)
        self.metrics.in_flight.set_function(lambda: self.admission.in_flight)
        self.metrics.draining_seconds.set_function(self._draining_seconds)

    # --- start and stop ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads and warms up every valid model, then scans the store for changes until cancelled.

        If no model can be served, it logs the reason and records a failure, which `/readyz` reports.
        """
        try:
            await in_daemon_thread(self._load)
        except (ModelRefusedError, StoreMissingError) as error:
            self.readiness.fail(str(error), f"MODEL_STORE={self.settings.model_store}")
        except ProviderUnavailableError as error:
            self.readiness.fail(str(error))
        except Exception as error:
            log.exception("start-up failed")
            self.readiness.fail(f"start-up failed: {type(error).__name__}; the log has the details")
        while self.readiness.loaded and self.settings.model_poll_seconds and not self.readiness.failure:
            await asyncio.sleep(self.settings.model_poll_seconds)
            await in_daemon_thread(self._refresh)

    def stop(self) -> None:
        if self._batcher:
            self._batcher.close()
        self._drawing_threads.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> None:
        settings = self.settings
        default = self._configured_default()
        self.provider = pick_provider(settings.require_cuda)
        if self.provider == CUDA:
            gpu_memory.watch(self.metrics.registry)
        places = devices.find(
            self.provider, settings.engines, settings.engine_workers, settings.batch_pixels, settings.engine_threads
        )
        catalogue = Catalogue(settings.model_store, places, settings.allow_tf32, self.metrics, default)
        self._scan(catalogue)
        decoders = (settings.decode_threads or usable_cores()) if self.provider == CUDA else 0
        self._batcher = Batcher(places, decoders, settings.max_pixels, self.metrics, self.readiness.fail)
        gc.collect()
        gc.freeze()  # later collections skip these objects, which live as long as the process
        self.readiness.catalogue = catalogue
        if missing := catalogue.choices.served and self.readiness.not_ready():
            log.warning("/readyz answers 503: %s", missing)

    def _configured_default(self) -> ModelPlace | None:
        """What DEFAULT_MODEL names. Raises ModelRefusedError if it is not in the store, before any model is loaded."""
        setting = self.settings.default_model
        if not setting:
            return None
        try:
            place = parse_place(setting)
        except ValueError as error:
            raise ModelRefusedError(f"DEFAULT_MODEL={setting}: {error}") from None
        try:
            listing = directories(self.settings.model_store)
        except OSError:  # it may be readable later; loading says why
            return place
        versions = [each for each in listing.versions if each.parent.name == place.name]
        unlisted = place.name in [each.name for each in listing.unreadable]
        if place.name not in listing.names:
            raise ModelRefusedError(
                f"DEFAULT_MODEL={setting} is not in the model store; choose from {shortened(', '.join(listing.names))}"
            )
        if place.version is not None and str(place.version) not in [each.name for each in versions] and not unlisted:
            found = shortened(", ".join(each.name for each in versions))
            raise ModelRefusedError(f"DEFAULT_MODEL={setting}: this version is not in the model store; it has {found}")
        return place

    def _refresh(self) -> None:
        assert self.readiness.catalogue is not None
        try:
            self._scan(self.readiness.catalogue)
        except ModelRefusedError as error:
            self.readiness.fail(str(error))

    def _scan(self, catalogue: Catalogue) -> None:
        """Raises ModelRefusedError if nothing is served, nothing ever was, and no further scan may change that."""
        try:
            catalogue.refresh()
            fault = None
        except StoreMissingError as error:
            if not self._served:
                raise
            fault = str(error)
        except Exception as error:  # the models already loaded can still be served
            fault = f"the model store cannot be read ({_kind(error)})"
        if fault and fault != self.readiness.store_fault:
            log.warning("%s; the loaded models are still served", fault)
        self.readiness.store_fault = fault
        choices = catalogue.choices
        self._served = self._served or bool(choices.served)
        polls = self.settings.model_poll_seconds > 0
        if not self._served and not (polls and (fault or catalogue.trying)):
            listed = choices.why_nothing_is_served()
            raise ModelRefusedError(f"no model in the store can be served{listed and f'; {listed}'}")
        if not polls and (missing := choices.default_missing()):
            raise ModelRefusedError(str(missing))

    # --- one request ---------------------------------------------------------------------------------------------

    async def infer(
        self,
        data: bytes,
        model: ServedModel,
        proposals_only: bool,
        admitted: Admitted,
        when_gone: Callable[[Callable[[], object]], None],
        image_id: str | None = None,
    ) -> Inference:
        """What `model` finds in the image file `data`, whose SHA-256 is `image_id` if already known.

        `when_gone` registers a callback for the client's disconnect.

        Raises TooLateError, ClientGoneError, ImageError or EngineFailedError.
        """
        assert self._batcher is not None  # a model exists, so `_load` has finished
        read = time.perf_counter() - admitted.since
        gone = False

        def when_gone_cancel(cancel: Callable[[], object]) -> None:
            def client_has_gone() -> None:
                nonlocal gone
                gone = True
                cancel()

            when_gone(client_has_gone)

        try:
            answer = await self._batcher.answer(
                data, model, proposals_only, admitted.timeout, admitted.bulk, image_id, when_gone_cancel
            )
        except asyncio.CancelledError:
            if not gone:  # the server is shutting down
                raise
            raise ClientGoneError from None
        except DeadlinePassedError:
            raise TooLateError(admitted.timeout) from None
        except EngineFailedError as error:
            self.metrics.failed.labels("out_of_memory" if isinstance(error, NoMemoryLeftError) else "engine").inc()
            raise
        self.recent.add(answer.digest, data)
        seconds = {"read": read, "decode": answer.decode, "queue": answer.queue, "inference": answer.inference}
        for stage, took in seconds.items():
            self.metrics.stage[stage].observe(took)
        seconds["total"] = time.perf_counter() - admitted.since
        return Inference(answer.digest, answer.width, answer.height, answer.result, seconds)

    async def drawn(self, inference: Inference, admitted: Admitted, draw: Callable[[], bytes]) -> bytes:
        """Calls `draw` in a thread and returns its result. The number of these threads bounds the memory for drawing.

        Raises TooLateError, NoMemoryLeftError, and whatever `draw` raises.
        """
        since_upload = inference.seconds["total"] - inference.seconds["read"]
        try:
            async with asyncio.timeout(admitted.timeout - since_upload):
                return await asyncio.get_running_loop().run_in_executor(self._drawing_threads, draw)
        except TimeoutError:
            self.metrics.cancelled.labels("deadline", "encode").inc()
            raise TooLateError(admitted.timeout) from None
        except MemoryError:
            self.metrics.failed.labels("out_of_memory").inc()
            raise NoMemoryLeftError from None

    def _draining_seconds(self) -> float:
        since = self.readiness.draining_since
        return 0.0 if since is None else time.monotonic() - since

    def _expected_wait(self) -> float:
        return self._batcher.expected_wait() if self._batcher else 0.0


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Runs `function` in a daemon thread. A thread pool would delay the exit of the process until it returns."""
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


def _kind(error: Exception) -> str:
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else type(error).__name__
