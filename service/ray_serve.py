"""The service as an application of Ray Serve: every replica is the whole service, in a process of its own.

    serve run service.ray_serve:app replicas=2 model_store=/data/models

Serve accepts the connections, replaces replicas that fail, and starts and drains others. Whether a request is admitted
is the application's decision, so Serve must neither refuse nor delay one. See docs/ray.md.
"""

from __future__ import annotations

import asyncio
import difflib
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ray
from prometheus_client import start_http_server
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service import setting_checks
from service.app import create_app
from service.http import problems
from service.readiness import Readiness
from service.runtime import Runtime
from service.settings import Settings
from service.telemetry import logs

# Serve counts a request from its head on, the application from the last byte of its body on. So there must be much room
# for uploads in progress, and for requests that will be refused.
LEAST_ONGOING = 4096
ONGOING_PER_PLACE = 4
# Serve keeps a replica reachable for so long after it has been told to stop
# (RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S), so that every HAProxy hears of it. Then it waits for the requests in
# flight, and ends the replica by force at the end of graceful_shutdown_timeout_s.
DEREGISTRATION_SECONDS = 30
SPARE_SECONDS = 5
DRAIN_LOOP_SECONDS = 0.5  # between looks at the number of requests in flight; Serve's default is 2 s
HEALTH_CHECK_SECONDS = 5.0  # Serve's default is 10 s
READY_LOOP_SECONDS = 0.1
# Requests in flight per replica that autoscaling aims at: two batches on a GPU, two images per core on a CPU.
GPU_TARGET = 16.0
CPU_TARGET = 2.0
METRICS_PORTS = 64  # how many replicas on one machine find a port of their own

# Settings for what Serve does in place of this project's server.
SERVE_DECIDES = {
    "port": "http_options say where the proxy listens",
    "uds": "http_options say where the proxy listens",
    "uds_mode": "http_options say where the proxy listens",
    "max_connections": "the proxy limits the connections (RAY_SERVE_HAPROXY_MAXCONN)",
    "shutdown_grace": "a draining replica stays reachable for RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
    "recent_bytes": "recent uploads are not kept, because the client's next request may reach another replica",
}

log = logging.getLogger(__name__)


class ArgumentError(ValueError):
    """An argument of `app` is unknown or has a wrong value. The message has one line for each fault."""


class ReplicaFailedError(Exception):
    """The replica cannot answer any more. Serve replaces it."""


class Scale(BaseModel):
    """How many replicas there are, and what each of them gets.

    replicas      the smallest number of replicas; default: one for each GPU of the cluster, or one
    max_replicas  the largest number; default: `replicas`, so the number stays the same
    target        requests in flight per replica at which Serve leaves the number as it is
    cpus          cores of each replica. On a CPU it runs as many images at a time, unless ENGINE_WORKERS is set
    gpus          GPUs of each replica; default: 1 if the cluster has any, else 0
    """

    replicas: int | None = Field(default=None, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    target: float | None = Field(default=None, gt=0)
    cpus: float = Field(default=1, gt=0)
    gpus: float | None = Field(default=None, ge=0)


@serve.ingress()
class Replica:
    """One replica. Serve creates it, asks it for the application, and then whether it is healthy."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """Takes the settings from `variables`, and those that are not there from this machine's environment.

        Raises ReplicaFailedError, with one line for each fault.
        """
        os.environ.update(variables)
        settings = Settings().model_copy(update={"recent_bytes": 0})
        if faults := list(setting_checks.faults(settings, ())):
            raise ReplicaFailedError("\n".join(faults))
        logs.start(settings.log_level, settings.access_log, settings.log_format == "json")
        _report_settings_without_effect()
        created = create_app(settings)
        self._runtime: Runtime = created.state.runtime
        if settings.metrics_port is not None:
            self._runtime.metrics_port = _serve_metrics(self._runtime, settings.host, settings.metrics_port)
        self._app: ASGIApp = OneRequestId(created)
        if settings.trusted_proxies:
            self._app = cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", self._app), settings.trusted_proxies))
        self._health = Health(self._runtime.readiness)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def check_health(self) -> None:
        """Raises ReplicaFailedError once the service has failed for good. Serve then replaces the replica."""
        await self._health.check()


class Health:
    """Whether a replica works.

    Serve sends a new replica no requests before the first check has returned. That one waits for the models.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._was_ready = False

    async def check(self) -> None:
        """Raises ReplicaFailedError with the reason, if the service has failed for good."""
        reported = ""
        while not self._was_ready and not self._readiness.failure:
            reason = self._readiness.not_ready()
            if reason is None:
                self._was_ready = True
                break
            detail = problems.of(reason).detail
            if self._readiness.loaded and detail != reported:
                log.warning("this replica gets no requests yet: %s", detail)
                reported = detail
            await asyncio.sleep(READY_LOOP_SECONDS)
        if self._readiness.failure:
            raise ReplicaFailedError(self._readiness.failure)


class OneRequestId:
    """Leaves the response header X-Request-ID to Serve, which adds it to every response.

    Serve gives a request without an id a new one, so the application and Serve agree, except on an id that is not valid
    (contract 3.8): Serve repeats it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without_id)


def app(args: dict[str, Any]) -> serve.Application:
    """The application, for `serve run` and for `import_path` in a file for `serve deploy`.

    args  members of `Scale`, and settings by their names: `model_store`, `max_in_flight`, …

    A setting that is not in `args` is read from the environment of this process, or else of the replica's machine.
    Raises ArgumentError.
    """
    scale, settings = read_scale(args), read_settings(args)
    if not ray.is_initialized() and (scale.replicas is None or scale.gpus is None):
        log.warning("%d replicas with %g GPUs each; replicas=N and gpus=N change this", *_size(scale))
    return deployment(scale, settings).bind(variables(args, settings, scale))


def deployment(scale: Scale, settings: Settings) -> serve.Deployment:
    """How Serve runs the replicas."""
    least, gpus = _size(scale)
    number: dict[str, Any] = {"num_replicas": least}
    if scale.max_replicas:
        number = {
            "num_replicas": "auto",
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": max(least, scale.max_replicas),
                "target_ongoing_requests": scale.target or (GPU_TARGET if gpus else CPU_TARGET * scale.cpus),
            },
        }
    return serve.deployment(
        Replica,
        name="detector",
        max_ongoing_requests=max(LEAST_ONGOING, ONGOING_PER_PLACE * settings.max_in_flight),
        graceful_shutdown_timeout_s=DEREGISTRATION_SECONDS + settings.drain_timeout + SPARE_SECONDS,
        graceful_shutdown_wait_loop_s=DRAIN_LOOP_SECONDS,
        health_check_period_s=HEALTH_CHECK_SECONDS,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": gpus},
        logging_config={"enable_access_log": False},  # Serve's own; ACCESS_LOG decides
        **number,
    )


def read_scale(args: Mapping[str, Any]) -> Scale:
    given = {name: value for name, value in args.items() if name in Scale.model_fields}
    try:
        scale = Scale(**given)
    except ValidationError as error:
        names = [str(fault["loc"][0]) for fault in error.errors()]
        limits = [setting_checks.allowed(Scale.model_fields[name]) for name in names]
        lines = [f"{name}={given[name]}: must be {limit}" for name, limit in zip(names, limits, strict=True)]
        raise ArgumentError("\n".join(lines)) from None
    if scale.max_replicas and scale.replicas and scale.max_replicas < scale.replicas:
        raise ArgumentError(f"max_replicas={scale.max_replicas}: must be at least replicas, {scale.replicas}")
    return scale


def _size(scale: Scale) -> tuple[int, float]:
    """The smallest number of replicas, and the GPUs of each."""
    if not ray.is_initialized():  # `serve run` calls `app` before it connects to the cluster
        return scale.replicas or 1, scale.gpus or 0
    available = ray.cluster_resources().get("GPU", 0)
    gpus = min(1, available) if scale.gpus is None else scale.gpus
    return scale.replicas or max(1, int(available / gpus) if gpus else 1), gpus


def read_settings(args: Mapping[str, Any]) -> Settings:
    given = {name: _text(value) for name, value in args.items() if name not in Scale.model_fields}
    if faults := [fault for name in given if (fault := _name_fault(name))]:
        raise ArgumentError("\n".join(faults))
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic converts the texts
    except ValidationError as error:
        raise ArgumentError("\n".join(_value_fault(fault, given) for fault in error.errors())) from None


def _value_fault(fault: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """One line about a value that a setting refuses: an argument if it is `given`, else a variable."""
    name = str(fault["loc"][0])
    return setting_checks.value_fault(fault, given).replace(f"{setting_checks.flag(name)} ", f"{name}=", 1)


def _name_fault(name: str) -> str | None:
    if name in SERVE_DECIDES:
        return f"{name} has no effect under Ray Serve: {SERVE_DECIDES[name]}"
    if name in Settings.model_fields:
        return None
    near = difflib.get_close_matches(name, [*Scale.model_fields, *Settings.model_fields], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Scale.model_fields)}, and every setting"
    return f"unknown argument {name}; {hint}"


def variables(args: Mapping[str, Any], settings: Settings, scale: Scale) -> dict[str, str]:
    """The environment variables for the replicas: the settings that are given here, by argument or by variable."""
    names = [name for name in Settings.model_fields if name not in SERVE_DECIDES]
    given = {name.upper(): os.environ.get(name.upper(), "").strip() for name in names}
    given |= {name.upper(): _text(args[name]) for name in names if name in args}
    store = settings.model_store
    if isinstance(store, Path) and store.exists():  # a replica runs in another folder
        given["MODEL_STORE"] = str(store.absolute())
    if not given["ENGINE_WORKERS"] and not _size(scale)[1]:
        given["ENGINE_WORKERS"] = str(max(1, int(scale.cpus)))  # else each replica would use all cores of its machine
    return {name: value for name, value in given.items() if value}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _report_settings_without_effect() -> None:
    for name, reason in SERVE_DECIDES.items():
        if name != "port" and os.environ.get(name.upper(), "").strip():  # container images set PORT
            log.warning("%s has no effect under Ray Serve: %s", name.upper(), reason)


def _serve_metrics(runtime: Runtime, host: str, first: int) -> int:
    """Serves the metrics of this replica on the first port from `first` on that is free. Returns the port."""
    for port in range(first, first + METRICS_PORTS):
        try:
            server, _ = start_http_server(port, host, runtime.metrics.registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            reason = (error.strerror or "unknown error").lower()
            raise ReplicaFailedError(f"METRICS_PORT={port}: cannot listen on HOST={host} ({reason})") from None
        log.info("metrics of this replica are on http://%s:%d/metrics", host, server.server_port)
        return int(server.server_port)
    raise ReplicaFailedError(f"METRICS_PORT={first}: this port and the next {METRICS_PORTS - 1} are in use")
