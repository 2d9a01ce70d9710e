"""The running service: loads its models, owns its queue, and answers one image at a time, from start to stop.

Everything here runs on the event loop, except for loading models and drawing boxes, which have their own threads. The
queue has further threads for decoding and inference.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from service.admission import Admission, Admitted
from service.engine import devices, memory_limit
from service.engine.cores import CAN_YIELD, usable_cores
from service.engine.engine import Result
from service.engine.isolation import EngineFailedError, NoMemoryLeftError
from service.engine.model import ModelRefusedError
from service.engine.options import EngineOptions
from service.engine.probe import ProbeReport
from service.engine.providers import CUDA, ProviderUnavailableError, choose
from service.images.cost import LIGHT_BYTES
from service.images.decode import DamagedImageError
from service.images.drawing import Drawing
from service.keys import Keys
from service.models.catalogue import Catalogue
from service.models.mirror import SYNC_SECONDS, Mirror
from service.models.remote import Remote
from service.models.served_model import ServedModel
from service.models.store import ModelPlace, StoreMissingError, check_listed, find_place, parse_place
from service.queue.artists import Artists
from service.queue.batcher import Batcher, DeadlinePassedError
from service.queue.memory import MemoryBudget
from service.readiness import Readiness
from service.recent_uploads import RecentUploads
from service.settings import MIB, Settings
from service.telemetry import gpu_memory
from service.telemetry.metrics import Metrics

KEYS_SECONDS = 1.0  # between looks at the file of keys

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
    warnings       words of `integrity.WARNINGS`, if the image is damaged or incomplete
    """

    image_id: str
    width: int
    height: int
    result: Result
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


class Runtime:
    """One application's state. Creating it is cheap; `start` loads the models, off the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.provider = ""
        self.gpus: tuple[ProbeReport, ...] = ()  # those that were checked at start
        self.why_cpu = ""  # the reason, if the provider is the CPU
        self.readiness = Readiness()
        self.recent = RecentUploads(settings.recent_bytes)
        self.memory = MemoryBudget()  # without a limit until the models are loaded, and so no request is admitted
        self.admission = Admission(settings.max_in_flight, settings.request_timeout, self._expected_wait, self.memory)
        self.keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
        self.metrics_port: int | None = None  # the port that METRICS_PORT has opened
        self._mirror: Mirror | None = None  # if MODEL_STORE is a URL
        self._served = False  # whether any model ever was
        self._light_bytes = 0  # set aside for the threads that work on light images
        self._batcher: Batcher | None = None
        cores = usable_cores()
        self.artists = Artists(max(1, cores - 1), _heavy_threads(cores), self.memory)  # a core is left for inference
        self.metrics.ready.set_function(lambda: self.readiness.not_ready() is None)
        self.metrics.recent_bytes.set_function(lambda: self.recent.size)
        for part in ("limit", "held", "work"):
            self.metrics.memory_bytes.labels(part).set_function(partial(getattr, self.memory, part))
        self.metrics.in_flight.set_function(lambda: self.admission.in_flight)
        self.metrics.expected_wait.set_function(self._expected_wait)
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

    async def watch_keys(self) -> None:
        """Reads the file of keys again every second, until cancelled."""
        while self.keys:
            await asyncio.sleep(KEYS_SECONDS)
            try:
                removed = await in_daemon_thread(self.keys.refresh, "keys")
            except Exception:  # for example no further thread can be started
                log.exception("API_KEYS_FILE cannot be read again; the previous keys stay valid")
                continue
            for name in removed:
                self.metrics.key_requests.remove_by_labels({"key": name})

    def stop(self) -> None:
        if self._batcher:
            self._batcher.close()
        self.artists.close()

    def _load(self) -> None:
        settings = self.settings
        memory_limit.return_freed_memory()
        folder = settings.store_folder
        if isinstance(settings.model_store, str):
            self._mirror = Mirror(Remote(settings.model_store), folder, settings.default_model)
        fault = self._fetch()
        default = self._configured_default(folder)
        choice = choose(settings.require_cuda, settings.engines)
        self.provider, self.gpus, self.why_cpu = choice
        for report in self.gpus:
            self.metrics.gpu.labels(str(report.device)).info(report.facts())
        if self.provider == CUDA:
            gpu_memory.watch(self.metrics.registry)
        found = devices.find(
            self.provider,
            settings.engines,
            settings.engine_workers,
            settings.batch_pixels,
            settings.engine_threads,
            choice.usable,
        )
        if self.provider != CUDA and settings.precision != "strict":
            log.info("PRECISION=%s has no effect on the CPU", settings.precision)
        if self.provider != CUDA and settings.resize_on_gpu:
            log.info("RESIZE_ON_GPU=true has no effect on the CPU")
        resize = None if settings.resize_on_gpu else False
        options = EngineOptions(settings.precision, settings.fixed_shapes, settings.gpu_memory, resize)
        catalogue = Catalogue(folder, found, options, self.metrics, default)
        self._scan(catalogue, fault)
        cores = usable_cores()
        decoders = (settings.decode_threads or cores) if self.provider == CUDA else 0
        self._light_bytes = LIGHT_BYTES * (cores + (decoders or sum(device.runs for device in found)))
        self._limit_memory()
        heavy = _heavy_threads(decoders or cores)
        self._batcher = Batcher(
            found, decoders, heavy, settings.max_pixels, self.memory, self.metrics, self.readiness.fail
        )
        gc.collect()
        gc.freeze()  # later collections skip these objects, which live as long as the process
        self.readiness.catalogue = catalogue
        if missing := catalogue.choices.served and self.readiness.not_ready():
            log.warning("/readyz answers 503: %s", missing)

    def _configured_default(self, folder: Path) -> ModelPlace | None:
        """What DEFAULT_MODEL names. Raises ModelRefusedError if it is not in the store, before any model is loaded."""
        setting = self.settings.default_model
        if not setting:
            return None
        try:
            if self._mirror is None:
                return find_place(folder, setting)
            place, contents = parse_place(setting), self._mirror.contents
            if contents is not None:  # else it is unknown what the store has
                check_listed(place, contents.names, contents.versions)
            return place
        except ValueError as error:
            raise ModelRefusedError(f"DEFAULT_MODEL={setting}: {error}") from None

    def _limit_memory(self) -> None:
        """Sets the memory budget, from the setting or from what the loaded models leave, and logs it."""
        settings = self.settings
        if settings.memory_budget:
            self.memory.set_limit(settings.memory_budget)
            log.info("memory: MEMORY_BUDGET is %d MiB; %s", settings.memory_budget // MIB, self._largest_image())
            return
        # what is in use beside the models: nothing at start, but perhaps much when a model is loaded later
        others = self.memory.work + self.memory.held + self.recent.size
        used = max(0, memory_limit.resident() - others)
        found = memory_limit.divide(memory_limit.available(), used, settings.recent_bytes + self._light_bytes)
        self.memory.set_limit(found.budget)
        log.info(
            "memory: the limit is %d MiB; %d MiB in use with the models loaded, %d MiB set aside, %d MiB left as "
            "MEMORY_BUDGET; %s",
            *(part // MIB for part in found),
            self._largest_image(),
        )
        if found.budget == memory_limit.LEAST_BUDGET:
            log.warning(
                "memory is so short that MEMORY_BUDGET is set to its minimum of %d MiB and the limit may be exceeded; "
                "give the service more memory, serve fewer models, lower RECENT_BYTES, or set ENGINE_THREADS=1",
                found.budget // MIB,
            )

    def _largest_image(self) -> str:
        return f"one image may take up to {self.memory.largest_work // MIB} MiB"

    def _refresh(self) -> None:
        assert self.readiness.catalogue is not None
        try:
            before = self.readiness.catalogue.choices
            self._scan(self.readiness.catalogue, self._fetch())
            now = self.readiness.catalogue.choices
            if now.served is not before.served and not self.settings.memory_budget:
                self._limit_memory()
            missing = now.default_missing()
            if missing and str(missing) != str(before.default_missing() or ""):
                log.warning("/readyz answers 503: %s", missing)
        except ModelRefusedError as error:
            self.readiness.fail(str(error))

    def _fetch(self) -> str | None:
        """Fetches what is new in a store at a URL. Returns why this is not possible now, or None."""
        if self._mirror is None:
            return None
        try:
            return self._mirror.sync(SYNC_SECONDS if self.settings.model_poll_seconds else math.inf)
        except Exception as error:
            log.exception("the models cannot be fetched")
            return f"the models cannot be fetched ({type(error).__name__}); the log has the details"

    def _scan(self, catalogue: Catalogue, fault: str | None = None) -> None:
        """Loads what has changed. `fault`: why the store could not be fetched.

        Raises ModelRefusedError if nothing is served, nothing ever was, and no further scan may change that.
        """
        try:
            catalogue.refresh()
        except StoreMissingError as error:
            if not self._served and not fault:
                raise
            fault = fault or str(error)
        except Exception as error:  # the models already loaded can still be served
            fault = fault or f"the model store cannot be read ({_kind(error)})"
        self._report_store(fault, bool(catalogue.choices.served))
        choices = catalogue.choices
        self._served = self._served or bool(choices.served)
        polls = self.settings.model_poll_seconds > 0
        if not self._served and not (polls and (fault or catalogue.trying)):
            listed = choices.why_nothing_is_served() or fault
            raise ModelRefusedError(f"no model in the store can be served{listed and f'; {listed}'}")
        if not polls and (missing := choices.default_missing()):
            raise ModelRefusedError(str(missing))

    def _report_store(self, fault: str | None, served: bool) -> None:
        """Shows why the store cannot be used now, and logs it once, until another reason or none applies."""
        before = self.readiness.store_fault
        if fault and fault != before:
            log.warning("%s; %s", fault, "the loaded models are still served" if served else "no model is served")
        elif before and not fault:
            log.info("the model store can be used again")
        self.readiness.store_fault = fault
        self.metrics.store_fault.set(fault is not None)

    # --- one request ---------------------------------------------------------------------------------------------

    async def infer(
        self,
        data: bytes,
        model: ServedModel,
        proposals_only: bool,
        admitted: Admitted,
        when_gone: Callable[[Callable[[], object]], None],
        owner: str,
        image_id: str | None = None,
        strict: bool = False,
    ) -> Inference:
        """What `model` finds in the image file `data`, whose SHA-256 is `image_id` if already known.

        `owner` may ask for this upload again. `when_gone` registers a callback for the client's disconnect. With
        `strict`, a damaged or incomplete image is an error; this is checked at the end, because requests with and
        without `strict` share a task.

        Raises TooLateError, ClientGoneError, ImageError, TooMuchMemoryError or EngineFailedError.
        """
        assert self._batcher is not None  # a model exists, so `_load` has finished
        read = time.perf_counter() - admitted.since
        watch = _Watch(when_gone)
        try:
            answer = await self._batcher.answer(
                data,
                model,
                proposals_only,
                admitted.timeout,
                admitted.bulk,
                admitted.load,
                image_id,
                watch.cancel_when_gone,
            )
        except asyncio.CancelledError:
            if not watch.gone:  # the server is shutting down
                raise
            raise ClientGoneError from None
        except DeadlinePassedError:
            raise TooLateError(admitted.timeout) from None
        except EngineFailedError as error:
            self.metrics.failed.labels("out_of_memory" if isinstance(error, NoMemoryLeftError) else "engine").inc()
            raise
        for word in answer.warnings:
            self.metrics.image_warnings.labels(word).inc()
        if strict and answer.warnings:
            raise DamagedImageError(answer.warnings)
        self.recent.add(answer.digest, data, owner)
        seconds = {"read": read, "decode": answer.decode, "queue": answer.queue, "inference": answer.inference}
        for stage, took in seconds.items():
            self.metrics.stage[stage].observe(took)
        seconds["total"] = time.perf_counter() - admitted.since
        return Inference(answer.digest, answer.width, answer.height, answer.result, seconds, answer.warnings)

    async def drawn(
        self,
        inference: Inference,
        admitted: Admitted,
        drawing: Drawing,
        when_gone: Callable[[Callable[[], object]], None],
    ) -> bytes:
        """The encoded drawing, made in a thread when there is memory for it.

        Raises TooLateError, ClientGoneError, NoMemoryLeftError, TooMuchMemoryError, and whatever `Drawing.draw` raises.
        """
        since_upload = inference.seconds["total"] - inference.seconds["read"]
        watch = _Watch(when_gone)
        drawn = asyncio.ensure_future(self.artists.draw(drawing))
        watch.cancel_when_gone(drawn.cancel)
        try:
            async with asyncio.timeout(admitted.timeout - since_upload):
                return await drawn
        except asyncio.CancelledError:
            if not watch.gone:  # the server is shutting down
                raise
            self.metrics.cancelled.labels("disconnected", "encode").inc()
            raise ClientGoneError from None
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


class _Watch:
    """Whether the client of a request has disconnected. `when_gone` registers a callback for that."""

    def __init__(self, when_gone: Callable[[Callable[[], object]], None]) -> None:
        self._when_gone = when_gone
        self.gone = False

    def cancel_when_gone(self, cancel: Callable[[], object]) -> None:
        def client_has_gone() -> None:
            self.gone = True
            cancel()

        self._when_gone(client_has_gone)


async def in_daemon_thread(function: Callable[[], T], name: str = "models") -> T:
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

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future


def _heavy_threads(threads: int) -> int:
    """How many threads may work on heavy images at a time.

    As many as there are cores, if they yield to the others. Else one core is left for light images.
    """
    return threads if CAN_YIELD else max(1, threads - 1)


def _kind(error: Exception) -> str:
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else type(error).__name__
