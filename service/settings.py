"""Every knob, read from the environment: its unit, its default, and why it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.images.decode import MAX_PIXELS

MIB = 2**20


class Settings(BaseSettings):
    """A field's name in capitals is its variable: `port` is PORT."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on; the container sets 0.0.0.0")
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any free port")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = Field(default=False, description="one line a request; /metrics counts them all anyway")

    model_store: Path = Field(default=Path("model_store"), description="folder of <name>/<version>/")
    default_model: str | None = Field(
        default=None,
        description="the model for requests that name none; else the only one, or that which MODEL_STORE/default names",
    )
    require_cuda: bool = Field(default=False, description="refuse to start on the CPU, rather than be slow unseen")

    model_poll_seconds: float = Field(
        default=2, ge=0, description="seconds between looks at the store for versions that came or went; 0 looks once"
    )

    engines: int | None = Field(
        default=None, ge=1, le=64, description="engines of every model; default one a GPU, and one on the CPU"
    )
    engine_workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="runs at once on an engine; default 1 on CUDA (a session has one stream), on the CPU one a core",
    )
    engine_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="threads that a lone run may have on the CPU; default all usable cores. "
        "1 saves the memory of a second pair of sessions. Under load a run has one thread either way",
    )
    allow_tf32: bool = Field(
        default=False,
        description="let CUDA multiply in TF32: faster, but answers then differ by more than 1e-4 from batch to batch",
    )
    batch_pixels: int | None = Field(
        default=None,
        ge=1,
        description="pixels of canvas in one batch, padding included, which bounds memory; default 8 million on CUDA. "
        "On the CPU 0.25 million and only where the queue is deep, since a batch makes its members wait for each other",
    )
    decode_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="beside CUDA; default one a usable core. On the CPU the threads that run also decode",
    )

    max_in_flight: int = Field(
        default=128,
        ge=1,
        description="requests between the door and their answer; more get 429. "
        "With MAX_UPLOAD_BYTES it bounds what uploads can take of memory",
    )
    max_upload_bytes: int = Field(default=20 * MIB, ge=1, description="bytes of one request's body; more get 413")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        description="width x height of one image, checked before it is decoded; else 413",
    )
    receive_timeout: float = Field(default=20, gt=0, description="seconds for a request's body to arrive; then 408")
    request_timeout: float = Field(
        default=30,
        gt=0,
        description="seconds from the body's end to the answer, then 504; a request may ask for less (?timeout=)",
    )
    shutdown_grace: float = Field(
        default=2,
        ge=0,
        description="seconds after SIGTERM in which /readyz says 503 but requests are still taken and answered, "
        "for whoever balances the load to notice. SIGINT, or a second SIGTERM, skips them",
    )
    drain_timeout: float = Field(
        default=30,
        gt=0,
        description="seconds after that for requests in flight. What the supervisor gives until it kills (compose: "
        "stop_grace_period) must be longer than SHUTDOWN_GRACE + DRAIN_TIMEOUT + 3 s",
    )
    recent_bytes: int = Field(
        default=64 * MIB, ge=0, description="bytes of recent uploads kept for GET /proposals?image_id=; 0 keeps none"
    )


def from_environment() -> Settings:
    """The settings. Raises ValueError with one line a fault, naming the variable."""
    try:
        return Settings()
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc'])).upper()}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise ValueError("\n".join(faults)) from error
