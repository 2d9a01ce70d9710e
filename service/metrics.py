"""Every metric, named and explained in one place. Base units: seconds, bytes, ratios from 0 to 1.

Labels come from fixed sets (route templates, our own reason words, a model's labels), never from what a client sent,
so nobody outside can make the number of series grow.
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

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)
DETECTIONS_A_PICTURE = (0, 1, 2, 3, 5, 10, 20, 50, 100)


class Metrics:
    """One application's metrics, in a registry of their own so that two applications in a process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, help, labels, buckets=buckets, registry=self.registry)

        def counter(name: str, help: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, help, labels, registry=self.registry)

        self.requests = histogram(
            "detector_request_seconds",
            "From the request's head to the last byte handed to the socket",
            LATENCY,
            ("method", "route", "status"),
        )
        stages = histogram(
            "detector_stage_seconds",
            "Time of one request in a stage: read (body), decode (to canvas), queue, inference (its batch), encode",
            LATENCY,
            ("stage",),
        )
        self.stage = {name: stages.labels(name) for name in ("read", "decode", "queue", "inference", "encode")}
        self.batch_size = histogram(
            "detector_batch_size", "Pictures in a batch given to the engine", BATCH_SIZES, ("graph",)
        )
        self.padding = histogram(
            "detector_batch_padded_ratio", "Share of a batch's pixels that no picture covers", SHARES
        )
        self.queue_depth = Gauge("detector_queue_depth", "Pictures waiting for an engine", registry=self.registry)
        self.in_flight = Gauge(
            "detector_requests_in_flight", "Requests between the door and their answer", registry=self.registry
        )
        self.rejected = counter(
            "detector_rejected_total", "Requests refused for what they are or when they came", ("reason",)
        )
        self.cancelled = counter(
            "detector_cancelled_total",
            "Requests that ended before their answer: disconnected (client gone), deadline (waited too long)",
            ("reason", "stage"),
        )
        self.failed = counter("detector_failed_total", "Requests that failed through no fault of theirs", ("reason",))
        self.detections = counter("detector_detections_total", "Detections answered", ("model", "version", "label"))
        self.detections_a_picture = histogram(
            "detector_detections_per_image", "Detections in one answer", DETECTIONS_A_PICTURE
        )
        self.upload_bytes = counter("detector_upload_bytes_total", "Bytes of request bodies read", ())
        self.recent_bytes = Gauge(
            "detector_recent_uploads_bytes", "Bytes of uploads kept for GET /proposals", registry=self.registry
        )
        self.ready = Gauge("detector_ready", "1 while /readyz says ready", registry=self.registry)
        self.model = Info(
            "detector_model",
            "Models served and the provider that runs them",
            ("model", "version"),
            registry=self.registry,
        )

    def scrape(self) -> bytes:
        return generate_latest(self.registry)
