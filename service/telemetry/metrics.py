"""All metrics, with their names and help texts. Base units: seconds, bytes, ratios from 0 to 1.

Label values come from fixed sets (route templates, reason words, the store's models and their labels, the names of the
keys) and never from a request, so clients cannot increase the number of series.
"""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from service.telemetry import logs

CONTENT_TYPE = CONTENT_TYPE_LATEST

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # any other is counted as "other"

# Bucket bounds in seconds, from encoding (below a millisecond) to the deadline. Neighbouring bounds differ by a factor
# of about two, so any quantile is accurate within that factor.
LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LOADING = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)
DETECTIONS_PER_IMAGE = (0, 1, 2, 3, 5, 10, 20, 50, 100)
STAGES = ("read", "decode", "queue", "inference", "encode")


class Metrics:
    """One application's metrics, in a registry of their own so that two applications in a process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests()
        self._batches()
        self._outcomes()
        self._models()
        self._connections()

    def scrape(self) -> bytes:
        return generate_latest(self.registry)

    def _requests(self) -> None:
        """Latency by stage, and work in progress."""
        self.requests = self._histogram(
            "request_seconds",
            "Time from the request's head until the last byte of the response is written to the socket",
            LATENCY,
            ("method", "route", "status"),
        )
        stages = self._histogram(
            "stage_seconds",
            "Time that a request spends in a stage: read (receiving the body), queue (waiting for a decoding thread "
            "and for an engine), decode (file to canvas), inference (the run of its batch), encode (the answer)",
            LATENCY,
            ("stage",),
        )
        self.stage = {name: stages.labels(name) for name in STAGES}
        self.in_flight = self._gauge(
            "requests_in_flight", "Requests between the last byte of their body and the last byte of their response"
        )
        self.queue_depth = self._gauge("queue_depth", "Images waiting for a decoding thread or an engine")
        self.expected_wait = self._gauge(
            "expected_wait_seconds",
            "Time that an image which arrives now would wait for an engine, at the current rate",
        )
        self.waiting_bytes = self._gauge("waiting_bytes", "Bytes of the uploads and decoded images that are waiting")
        self.upload_bytes = self._counter("upload_bytes_total", "Bytes of request bodies read")
        self.recent_bytes = self._gauge("recent_uploads_bytes", "Bytes of memory that recent uploads take")
        self.memory_bytes = self._gauge(
            "memory_bytes",
            "The memory budget: its limit, what clients hold (uploads, responses), and what heavy images take (work)",
            ("part",),
        )

    def _connections(self) -> None:
        """Clients' connections, and those that were closed because of a limit."""
        self.connections = self._gauge("connections", "Open connections")
        self.uploads_in_progress = self._gauge("uploads_in_progress", "Requests whose body has not arrived completely")
        self.upload_memory = self._gauge("uploads_in_progress_bytes", "Bytes of incomplete bodies that have arrived")
        self.unsent_bytes = self._gauge(
            "unsent_bytes",
            "Bytes of responses that their clients have not received, for responses too long for the system's buffers",
        )
        self.connections_closed = self._counter(
            "connections_closed_total",
            "Connections and uploads ended because of a limit: head_timeout, slow_upload, slow_reader, "
            "connection_limit, evicted_upload, upload_memory, evicted_reader",
            ("reason",),
        )

    def _batches(self) -> None:
        """How well the engines are used."""
        sizes = self._histogram("batch_size", "Images per batch", BATCH_SIZES, ("graph",))
        self.batch_size = {graph: sizes.labels(graph) for graph in ("full", "proposals")}
        self.batch_fill = self._histogram(
            "batch_filled_ratio", "Share of the pixel budget that a batch uses, padding included", SHARES
        )
        self.padding = self._histogram("batch_padded_ratio", "Share of a batch's pixels that are padding", SHARES)
        self.engine_seconds = self._counter(
            "engine_busy_seconds_total",
            "Seconds in which the device ran batches; concurrent runs are summed, so a saturated CPU engine adds one "
            "second per core per second. The time to prepare batches and to read their outputs is not included",
            ("device",),
        )
        self.shape_changes = self._counter(
            "shape_changes_total",
            "Batches for which the device had to prepare itself, because their canvas or number of images was not the "
            "last one; counted only where this takes time, on GPUs without fixed shapes",
            ("device",),
        )
        self.batch_budget = self._gauge(
            "batch_budget_pixels",
            "Current limit of canvas pixels per batch; halved when memory runs out",
            ("device",),
        )
        self.out_of_memory = self._counter("out_of_memory_total", "Batches that ran out of memory", ("device",))

    def _outcomes(self) -> None:
        """Requests refused, dropped, shared or failed, and the detections in the others."""
        self.rejected = self._counter(
            "rejected_total",
            "Requests refused because of their content, of overload, or because the service is not ready",
            ("reason",),
        )
        self.cancelled = self._counter(
            "cancelled_total",
            "Requests dropped before their answer, because the client disconnected or the deadline passed; "
            "those dropped in stage read or queue cost no inference",
            ("reason", "stage"),
        )
        self.image_warnings = self._counter(
            "image_warnings_total",
            "Images that were decoded although they are damaged, incomplete, or have values that do not fit the model; "
            "with strict=true they are also refused",
            ("reason",),
        )
        self.shared = self._counter(
            "shared_total", "Requests that shared the inference of another request in flight for the same image"
        )
        self.key_requests = self._counter(
            "key_requests_total", "Requests with a valid key, by its name in API_KEYS_FILE", ("key", "status")
        )
        self.failed = self._counter("failed_total", "Requests that failed because of the service", ("reason",))
        self.detections = self._counter("detections_total", "Detections returned", ("model", "version", "label"))
        self.detections_per_image = self._histogram(
            "detections_per_image", "Detections per answer", DETECTIONS_PER_IMAGE
        )

        self.log_lines_lost = self._gauge(
            "log_lines_lost", "Lines of the log that could not be written since the start"
        )
        self.log_lines_lost.set_function(logs.lines_lost)

    def _models(self) -> None:
        """Readiness, served models, and the time that changes take."""
        self.ready = self._gauge("ready", "1 while /readyz answers 200, else 0")
        self.draining_seconds = self._gauge("draining_seconds", "Seconds since the service was asked to stop")
        self.model = Info(
            "detector_model",
            "Served models, the provider that runs them, and whether their sessions have fixed or dynamic shapes",
            ("model", "version"),
            registry=self.registry,
        )
        self.gpu = Info(
            "detector_gpu",
            "GPUs that were checked at start, by CUDA's number: name, architecture, versions of driver, CUDA and "
            "cuDNN; fault is empty, or if the GPU is not used driver, libraries, architecture, busy, memory, "
            "kernels or values",
            ("device",),
            registry=self.registry,
        )
        self.model_refused = self._gauge(
            "model_refused",
            "1 for each of the first 20 versions in the store that are refused; GET /models lists the reasons",
            ("model",),
        )
        self.refused_versions = self._gauge("refused_versions", "Number of all versions in the store that are refused")
        self.arriving_versions = self._gauge("arriving_versions", "Versions in the store that are still being copied")
        self.store_fault = self._gauge(
            "model_store_fault", "1 while the model store cannot be read, reached or fetched completely, else 0"
        )
        self.model_changes = self._counter(
            "model_changes_total", "Changes of versions: served, refused or removed", ("change",)
        )
        self.model_load_seconds = self._histogram(
            "model_load_seconds",
            "Time from finding a version to serving it, for checks, opening sessions and warm-up",
            LOADING,
        )
        self.model_drain_seconds = self._histogram(
            "model_drain_seconds", "Time from the replacement or removal of a version to its last answer", LATENCY
        )

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"detector_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"detector_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"detector_{name}", help, labels, registry=self.registry)
