"""Every metric, named and explained in one place. Base units: seconds, bytes, ratios from 0 to 1.

Labels come from fixed sets (route templates, our own reason words, the store's models and their labels), never from
what a client sent, so nobody outside can make the number of series grow.
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

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From encoding (a tenth of a millisecond) to the deadline, with a factor of about two from bucket to bucket, so that a
# quantile is right within that factor wherever it lies.
LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LOADING = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)
DETECTIONS_AN_IMAGE = (0, 1, 2, 3, 5, 10, 20, 50, 100)
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

    def scrape(self) -> bytes:
        return generate_latest(self.registry)

    def _requests(self) -> None:
        """Where the time goes, and what is in the house."""
        self.requests = self._histogram(
            "request_seconds",
            "From the request's head to the last byte handed to the socket",
            LATENCY,
            ("method", "route", "status"),
        )
        stages = self._histogram(
            "stage_seconds",
            "Time of one request in a stage: read (body), queue (waiting for a thread and for an engine), "
            "decode (bytes to canvas), inference (its batch), encode",
            LATENCY,
            ("stage",),
        )
        self.stage = {name: stages.labels(name) for name in STAGES}
        self.in_flight = self._gauge("requests_in_flight", "Requests between the door and their answer")
        self.queue_depth = self._gauge("queue_depth", "Images waiting to be decoded or for an engine")
        self.waiting_bytes = self._gauge("waiting_bytes", "Bytes of uploads and of decoded images that wait")
        self.upload_bytes = self._counter("upload_bytes_total", "Bytes of request bodies read")
        self.recent_bytes = self._gauge("recent_uploads_bytes", "Bytes of uploads kept for GET /proposals")

    def _batches(self) -> None:
        """How full the engines are."""
        sizes = self._histogram("batch_size", "Images in a batch given to an engine", BATCH_SIZES, ("graph",))
        self.batch_size = {graph: sizes.labels(graph) for graph in ("full", "proposals")}
        self.batch_fill = self._histogram(
            "batch_filled_ratio", "Share of its budget of pixels that a batch uses, padding included", SHARES
        )
        self.padding = self._histogram("batch_padded_ratio", "Share of a batch's pixels that no image covers", SHARES)
        self.engine_seconds = self._counter(
            "engine_busy_seconds_total",
            "Seconds of runs; runs that go on at once count each, so a full CPU engine gains one a core and second",
            ("device",),
        )
        self.batch_budget = self._gauge(
            "batch_budget_pixels",
            "Pixels of canvas that a batch may have now; halved when memory runs out",
            ("device",),
        )
        self.out_of_memory = self._counter("out_of_memory_total", "Batches for which memory ran out", ("device",))

    def _outcomes(self) -> None:
        """Why work was refused, dropped, shared or failed, and what was found."""
        self.rejected = self._counter(
            "rejected_total", "Requests refused for what they are or when they came", ("reason",)
        )
        self.cancelled = self._counter(
            "cancelled_total",
            "Requests that ended before their answer: disconnected (client gone), deadline (waited too long); "
            "those in stage read or queue cost no inference",
            ("reason", "stage"),
        )
        self.shared = self._counter(
            "shared_total", "Requests answered by the computation of the same image for another that was in flight"
        )
        self.failed = self._counter("failed_total", "Requests that failed through no fault of theirs", ("reason",))
        self.detections = self._counter("detections_total", "Detections answered", ("model", "version", "label"))
        self.detections_a_picture = self._histogram(
            "detections_per_image", "Detections in one answer", DETECTIONS_AN_IMAGE
        )

    def _models(self) -> None:
        """What is served, and how long changes take."""
        self.ready = self._gauge("ready", "1 while /readyz says ready")
        self.draining_seconds = self._gauge("draining_seconds", "Seconds since the service was asked to stop")
        self.model = Info(
            "detector_model",
            "Models served and the provider that runs them",
            ("model", "version"),
            registry=self.registry,
        )
        self.model_refused = self._gauge(
            "model_refused", "1 for a version in the store that is not served; /models has the reason", ("model",)
        )
        self.model_changes = self._counter("model_changes_total", "Versions served, refused or removed", ("change",))
        self.model_load_seconds = self._histogram(
            "model_load_seconds", "From finding a version to serving it: check, sessions, warm-up", LOADING
        )
        self.model_drain_seconds = self._histogram(
            "model_drain_seconds", "From a version's replacement or removal to its last answer", LATENCY
        )

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"detector_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"detector_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"detector_{name}", help, labels, registry=self.registry)
