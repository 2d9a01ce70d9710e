"""Every setting, with its unit, default and reason."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ByteSize, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.engine.precision import Precision
from service.images import formats
from service.images.decode import MAX_PIXELS
from service.models import remote

MIB = 2**20
UNIX = "unix"  # in TRUSTED_PROXIES: whatever connects to the Unix socket
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE)
QUOTED = "the quotation marks are part of the value; remove them"
LARGEST = 2**40  # bytes or pixels, far beyond any machine; arithmetic with longer numbers can overflow
MOST_REQUESTS = 1_000_000
DAY = 86_400  # seconds; no wait is meant to be longer, and timers of the event loop overflow at 1e300


WHOLE = re.compile(r"[+-]?[0-9]+")


def _is_number(kind: Any) -> bool:
    return any(each in (int, float, ByteSize) for each in (kind, *get_args(kind)))


class _Variables(PydanticBaseSettingsSource):
    """Reads `port` from PORT and nothing else. pydantic-settings would also take a variable `port` or `Port`."""

    def get_field_value(self, _: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return os.environ.get(field_name.upper()), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """The environment variable of a field is its name in capitals: `port` is read from PORT.

    A blank value means the default, because compose files and unit files pass unset variables on as empty ones. Spaces
    around a value are dropped.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", description="address to listen on; the container image sets 0.0.0.0")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 chooses a free port")
    uds: Path | None = Field(
        default=None,
        description="listen on a Unix socket with this path instead of HOST and PORT. A socket that an earlier process "
        "has left there is replaced, any other file is not. All its clients count as one, unless TRUSTED_PROXIES has "
        "the word unix",
    )
    uds_mode: str = Field(
        default="660",
        description="permissions of the file UDS, as chmod takes them: 660 lets its owner and its group connect",
    )
    cors_origins: str = Field(
        default="",
        description="origins whose pages may call the service from a browser, such as https://app.example.org, "
        "separated by commas, or * for all. A page needs a key too, if API_KEYS_FILE is set",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level that is logged"
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="form of the log: text, or one JSON object per line, with the names of OpenTelemetry's data model",
    )
    access_log: bool = Field(default=False, description="log one line per request; /metrics counts them either way")

    model_store: Path | str = Field(
        default=Path("model_store"),
        description="folder of models, as <name>/<version>/, or its URL: s3://, gs://, az:// or file:// (extra store)",
    )
    model_cache: Path | None = Field(
        default=None,
        description="if MODEL_STORE is a URL: folder in which its models are kept, also for starts without the store. "
        "Default: ~/.cache/faster-rcnn/stores",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="file with the keys of the clients, one line each, which `faster-rcnn key NAME` prints. With it, "
        "every path needs a key, except /healthz and /readyz. The file is read again when it changes",
    )
    public_page: bool = Field(
        default=False, description="with API_KEYS_FILE: serve /, /docs and /openapi.json without a key"
    )
    public_metrics: bool = Field(default=False, description="with API_KEYS_FILE: serve /metrics without a key")
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="another port on HOST, which serves /metrics without a key, and nothing else; /metrics then leaves "
        "PORT. Keep it off public networks. Default: /metrics is on PORT",
    )

    default_model: str | None = Field(
        default=None,
        description="model for requests that name none, as NAME or NAME/VERSION; if unset, what MODEL_STORE/default "
        "holds, else the only model in the store. While it is not served, such requests get 503",
    )
    require_cuda: bool = Field(
        default=False,
        description="refuse to start unless a GPU passes the check at start, instead of running on the CPU, which the "
        "log and /readyz explain",
    )

    model_poll_seconds: float = Field(
        default=2, ge=0, le=DAY, description="seconds between scans of the model store; 0 scans once, at start"
    )

    engines: int | None = Field(
        default=None, ge=1, le=64, description="engines of every model; default: one per GPU, or one on the CPU"
    )
    engine_workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="concurrent runs per engine; default: 1 on CUDA (two runs of a session would wait for each other "
        "at every convolution), one per core on the CPU",
    )
    engine_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="threads for a run while no other run is active (CPU only); default: all usable cores. "
        "1 saves the memory of a second pair of sessions. Under load every run uses one thread",
    )
    precision: Precision = Field(
        default="strict",
        description="arithmetic on CUDA. strict: what the graph says, so that an answer does not depend on the batch "
        "(within 1e-4). tf32: factors are rounded to ten bits, which is faster. fp16: a model's float16 graph if it "
        "has one, else as tf32. The CPU always computes as with strict",
    )
    fixed_shapes: bool | None = Field(
        default=None,
        description="open a session for each of a few canvases and batch sizes, because CUDA prepares every "
        "convolution again when the shape changes; default: on with CUDA, off on the CPU",
    )
    resize_on_gpu: bool = Field(
        default=False,
        description="resize ordinary images on the GPU, which leaves the CPU only their decoding; no effect on the CPU",
    )
    gpu_memory: ByteSize | None = Field(
        default=None,
        ge=64 * MIB,
        le=LARGEST,
        description="bytes of each GPU that the runs of all models may take together, beside their weights, which take "
        "about as much as their files; also 800MB or 1.5GiB. A batch that does not fit is halved. Default: all that is "
        "free",
    )
    batch_pixels: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST,
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
        le=MOST_REQUESTS,
        description="maximum number of requests in flight; further requests get 429. A few more places are kept for "
        "clients that have no request in flight",
    )
    max_upload_bytes: int = Field(
        default=20 * MIB, ge=1, le=LARGEST, description="maximum bytes in the body of a request; a larger body gets 413"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=LARGEST,
        description="maximum pixels (width x height) of an image, checked before decoding; a larger image gets 413",
    )
    image_formats: str = Field(
        default=",".join(formats.DEFAULT).lower(),
        description="formats of images that are read, separated by commas; there are also tiff, avif and heif (HEIC). "
        "A file's contents decide, not its name",
    )
    max_connections: int | None = Field(
        default=None,
        ge=8,
        le=MOST_REQUESTS,
        description="maximum number of open connections; at the limit, each new one closes the longest idle one. "
        "Default: 4096, or fewer if the limit on file descriptors (ulimit -n) requires it",
    )
    max_uploads: int = Field(
        default=64,
        ge=1,
        le=MOST_REQUESTS,
        description="maximum number of uploads in progress that are longer than 256 kB; a further one waits, or "
        "displaces a slower one, which gets 429",
    )
    max_uploads_per_client: int = Field(
        default=32,
        ge=1,
        le=MOST_REQUESTS,
        description="maximum number of such uploads of one client, by its address (see TRUSTED_PROXIES)",
    )
    min_transfer_rate: float = Field(
        default=1000,
        gt=0,
        le=LARGEST,
        description="bytes per second. An upload that is slower on average after 10 s gets 408; a client that reads a "
        "long response more slowly during 60 s is disconnected",
    )
    trusted_proxies: str = Field(
        default="",
        description="addresses or networks of reverse proxies, separated by commas, or unix for the proxy that "
        "connects to UDS. A request that comes from one of them counts for the client that its X-Forwarded-For names; "
        "from others this header is ignored",
    )
    memory_budget: ByteSize | None = Field(
        default=None,
        ge=16 * MIB,
        le=LARGEST,
        description="bytes for uploads, responses, and decoding and drawing large images, all together; also 800MB or "
        "1.5GiB. Work that does not fit waits; an image that can never fit gets 413. Default: what the control group's "
        "limit, or else half of the machine's memory, leaves beside the loaded models",
    )
    receive_timeout: float = Field(
        default=20,
        gt=0,
        le=DAY,
        description="seconds within which the body of a request must arrive; a slower upload gets 408",
    )
    request_timeout: float = Field(
        default=30,
        gt=0,
        le=DAY,
        description="maximum seconds from the end of the upload to the answer; after that the request gets 504. "
        "A request may set a shorter time: ?timeout=",
    )
    shutdown_grace: float = Field(
        default=2,
        ge=0,
        le=DAY,
        description="seconds after SIGTERM during which /readyz answers 503 but requests are still admitted, so that "
        "the load balancer can react. SIGINT or a second SIGTERM skips this period",
    )
    drain_timeout: float = Field(
        default=30,
        gt=0,
        le=DAY,
        description="seconds after the grace period for answering requests in flight. The supervisor's kill timeout "
        "(compose: stop_grace_period) must be longer than SHUTDOWN_GRACE + DRAIN_TIMEOUT + 3 s",
    )
    recent_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=LARGEST,
        description="maximum bytes of memory for recent uploads, which GET /proposals?image_id= runs again for the "
        "client that sent them; 0 keeps none",
    )

    @field_validator("model_store", mode="before")
    @classmethod
    def _is_a_folder_or_a_url(cls, store: Any) -> Any:
        if not isinstance(store, str):
            return store
        return remote.parse_url(store) if remote.is_url(store) else Path(store)

    @field_validator("uds_mode")
    @classmethod
    def _is_a_mode(cls, mode: str) -> str:
        if not re.fullmatch(r"0?[0-7]{3}", mode):
            raise ValueError("must be three digits from 0 to 7, such as 660")
        return mode

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        origins = [origin.strip() for origin in text.split(",") if origin.strip()]
        if origins != ["*"] and not all(map(_ORIGIN.fullmatch, origins)):
            raise ValueError(
                "must be origins such as https://app.example.org or http://localhost:3000, without a path or a slash "
                "at the end, separated by commas, or * alone"
            )
        return ",".join(origin.lower() for origin in origins)

    @field_validator("image_formats")
    @classmethod
    def _are_formats(cls, names: str) -> str:
        return ",".join(formats.parse(names)).lower()

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: str) -> str:
        for proxy in filter(None, map(str.strip, proxies.split(","))):
            if proxy == UNIX:
                continue
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError("must be IP addresses or networks such as 10.0.0.0/8, separated by commas") from None
        return proxies

    @field_validator("metrics_port")
    @classmethod
    def _differs_from_port(cls, metrics_port: int | None, others: ValidationInfo) -> int | None:
        if metrics_port and metrics_port == others.data.get("port"):
            raise ValueError("must differ from PORT")
        return metrics_port

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Variables(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: dict[str, Any]) -> dict[str, Any]:
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _without_quotation_marks(cls, value: Any) -> Any:
        """Raises ValueError for `"8000"`: env files of Docker and lists in compose files keep the quotation marks."""
        if isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            raise ValueError(QUOTED)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _in_plain_digits(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuses what pydantic reads as a number but nobody writes on purpose: 8_000, and 8000.0 for a port."""
        kind = cls.model_fields[str(field.field_name)].annotation
        whole = int in (kind, *get_args(kind))
        if isinstance(value, str) and ((whole and not WHOLE.fullmatch(value)) or (_is_number(kind) and "_" in value)):
            raise PydanticCustomError("number", "not a number in plain digits")
        return value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @property
    def store_folder(self) -> Path:
        """The folder of models on this machine: MODEL_STORE, or the copy of the store at its URL.

        Raises ValueError if there is no place for a copy.
        """
        return (
            remote.copy_folder(self.model_store, self.model_cache)
            if isinstance(self.model_store, str)
            else self.model_store
        )
