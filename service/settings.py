"""Every setting, with its unit, default and reason."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.images.decode import MAX_PIXELS

MIB = 2**20


class Settings(BaseSettings):
    """The environment variable of a field is its name in capitals: `port` is read from PORT."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on; the container image sets 0.0.0.0")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 chooses a free port")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level that is logged"
    )
    access_log: bool = Field(default=False, description="log one line per request; /metrics counts them either way")

    model_store: Path = Field(default=Path("model_store"), description="folder of models, as <name>/<version>/")
    default_model: str | None = Field(
        default=None,
        description="model for requests that name none; if unset, the one named in MODEL_STORE/default, or the only "
        "model",
    )
    require_cuda: bool = Field(
        default=False, description="refuse to start without CUDA instead of silently running on the CPU"
    )

    model_poll_seconds: float = Field(
        default=2, ge=0, description="seconds between scans of the model store; 0 scans once, at start"
    )

    engines: int | None = Field(
        default=None, ge=1, le=64, description="engines of every model; default: one per GPU, or one on the CPU"
    )
    engine_workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="concurrent runs per engine; default: 1 on CUDA (a session has one stream), one per core on the "
        "CPU",
    )
    engine_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="threads for a run while no other run is active (CPU only); default: all usable cores. "
        "1 saves the memory of a second pair of sessions. Under load every run uses one thread",
    )
    allow_tf32: bool = Field(
        default=False,
        description="let CUDA multiply in TF32; this is faster, but answers then vary with the batch by more than 1e-4",
    )
    batch_pixels: int | None = Field(
        default=None,
        ge=1,
        description="maximum canvas pixels in one batch, padding included; bounds the memory for a run. Default: "
        "8 million on CUDA; 0.25 million on the CPU, where batches form only if the queue is long",
    )
    decode_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="decoding threads when inference runs on CUDA; default: one per usable core. "
        "On the CPU the inference threads also decode",
    )

    max_in_flight: int = Field(
        default=128,
        ge=1,
        description="maximum number of requests in flight; further requests get 429. A few more places are kept for "
        "clients that have no request in flight",
    )
    max_upload_bytes: int = Field(
        default=20 * MIB, ge=1, description="maximum bytes in the body of a request; a larger body gets 413"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        description="maximum pixels (width x height) of an image, checked before decoding; a larger image gets 413",
    )
    max_connections: int | None = Field(
        default=None,
        ge=8,
        description="maximum number of open connections; at the limit, each new one closes the longest idle one. "
        "Default: 4096, or fewer if the limit on file descriptors (ulimit -n) requires it",
    )
    max_uploads: int = Field(
        default=64,
        ge=1,
        description="maximum number of uploads in progress that are longer than 256 kB; a further one waits, or "
        "displaces a slower one, which gets 429",
    )
    max_uploads_per_client: int = Field(
        default=32,
        ge=1,
        description="maximum number of such uploads of one client, by its address (see TRUSTED_PROXIES)",
    )
    min_transfer_rate: float = Field(
        default=1000,
        gt=0,
        description="bytes per second. An upload that is slower on average after 10 s gets 408; a client that reads a "
        "long response more slowly during 60 s is disconnected",
    )
    trusted_proxies: str = Field(
        default="",
        description="addresses or networks of reverse proxies, separated by commas. A request that comes from one of "
        "them counts for the client that its X-Forwarded-For names; from others this header is ignored",
    )
    memory_budget: ByteSize | None = Field(
        default=None,
        ge=16 * MIB,
        description="bytes for uploads, responses, and decoding and drawing large images, all together; also 800MB or "
        "1.5GiB. Work that does not fit waits; an image that can never fit gets 413. Default: what the control group's "
        "limit, or else half of the machine's memory, leaves beside the loaded models",
    )
    receive_timeout: float = Field(
        default=20, gt=0, description="seconds within which the body of a request must arrive; a slower upload gets 408"
    )
    request_timeout: float = Field(
        default=30,
        gt=0,
        description="maximum seconds from the end of the upload to the answer; after that the request gets 504. "
        "A request may set a shorter time: ?timeout=",
    )
    shutdown_grace: float = Field(
        default=2,
        ge=0,
        description="seconds after SIGTERM during which /readyz answers 503 but requests are still admitted, so that "
        "the load balancer can react. SIGINT or a second SIGTERM skips this period",
    )
    drain_timeout: float = Field(
        default=30,
        gt=0,
        description="seconds after the grace period for answering requests in flight. The supervisor's kill timeout "
        "(compose: stop_grace_period) must be longer than SHUTDOWN_GRACE + DRAIN_TIMEOUT + 3 s",
    )
    recent_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        description="maximum bytes of recent uploads kept for GET /proposals?image_id=; 0 keeps none",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for proxy in filter(None, map(str.strip, proxies.split(","))):
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(f"{proxy} is not an IP address or a network such as 10.0.0.0/8") from None
        return proxies
