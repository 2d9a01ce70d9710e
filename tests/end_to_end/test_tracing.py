"""A real OTLP receiver gets the spans of real requests. Without tracing, the SDK is not imported."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status
from PIL import Image

from tests.end_to_end.conftest import ROOT, Server, encoded
from tests.service import graphs

GREY = encoded(Image.new("RGB", (96, 32), (102, 102, 102)))
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["read", "queue", "decode", "inference", "encode"]


class Receiver(HTTPServer):
    """Receives the data of an OpenTelemetry exporter in `resources`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.resources: list[ResourceSpans] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [span for resource in self.resources for scope in resource.scope_spans for span in scope.spans]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.resources.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def traced(receiver, tmp_path_factory) -> dict[str, httpx.Response]:
    """The responses, by the names of the requests. The service has shut down, so it has sent all its spans."""
    store = tmp_path_factory.mktemp("store")
    graphs.publish(store, "plain", 4)
    # the delay is much longer than the test, so all spans that arrive were sent at shutdown
    running = Server(
        MODEL_STORE=store, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY=60_000
    ).ready()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine", "Authorization": "Bearer secret"}
    responses = {
        "good": running.http.post("/detect", content=GREY, headers=headers),
        "alone": running.http.post("/proposals", content=GREY),
        "broken": running.http.post("/detect", content=b"hello", headers={"X-Request-ID": "broken"}),
        "unsampled": running.http.post("/detect", content=GREY, headers={"traceparent": f"00-{'a' * 32}-{PARENT}-00"}),
        "unknown": running.http.get("/no/such/path", headers={"X-Request-ID": "unknown"}),
        "odd": running.http.request("PROPFIND", "/healthz"),
    }
    assert running.stop() == 0
    return responses


def named(receiver: Receiver, name: str) -> list[Span]:
    return [span for span in receiver.spans() if span.name == name]


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def children(receiver: Receiver, parent: Span) -> list[Span]:
    return [span for span in receiver.spans() if span.parent_span_id == parent.span_id]


def test_a_request_becomes_a_span_in_the_trace_of_its_client(traced, receiver):
    assert traced["good"].status_code == 200
    (span,) = (span for span in named(receiver, "POST /detect") if span.trace_id.hex() == TRACE)
    assert span.parent_span_id.hex() == PARENT
    assert span.kind == Span.SPAN_KIND_SERVER
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/detect",
        "http.response.status_code": 200,
        "request_id": "mine",
    }


def test_stages_are_child_spans_with_the_durations_of_server_timing(traced, receiver):
    (span,) = (span for span in named(receiver, "POST /detect") if span.trace_id.hex() == TRACE)
    stages = sorted(children(receiver, span), key=lambda stage: STAGES.index(stage.name))
    assert [stage.name for stage in stages] == STAGES
    assert {stage.trace_id for stage in stages} == {span.trace_id}
    took = {stage.name: (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6 for stage in stages}
    server_timing = dict(part.split(";dur=") for part in traced["good"].headers["server-timing"].split(", "))
    assert took == pytest.approx({stage: float(server_timing[stage]) for stage in STAGES})
    assert stages[0].start_time_unix_nano == span.start_time_unix_nano
    for earlier, later in itertools.pairwise(stages):
        assert later.start_time_unix_nano == earlier.end_time_unix_nano
    assert stages[-1].end_time_unix_nano <= span.end_time_unix_nano


def test_a_request_without_a_trace_starts_a_new_trace(traced, receiver):
    (span,) = named(receiver, "POST /proposals")
    assert span.parent_span_id == b""
    assert span.trace_id.hex() not in (TRACE, "0" * 32)
    assert attributes(span)["request_id"] == traced["alone"].headers["x-request-id"]
    assert sorted(stage.name for stage in children(receiver, span)) == sorted(STAGES)


def test_a_refused_image_becomes_a_span_without_stages_or_error_status(traced, receiver):
    assert traced["broken"].status_code == 400
    (span,) = (span for span in named(receiver, "POST /detect") if attributes(span)["request_id"] == "broken")
    assert attributes(span)["http.response.status_code"] == 400
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert children(receiver, span) == []


def test_a_request_that_is_not_sampled_is_not_sent(traced, receiver):
    assert traced["unsampled"].status_code == 200
    assert "a" * 32 not in {span.trace_id.hex() for span in receiver.spans()}


def test_no_text_from_a_client_becomes_the_name_of_a_span(traced, receiver):
    assert traced["unknown"].status_code == 404
    assert traced["odd"].status_code == 405
    names = {span.name for span in receiver.spans()} - set(STAGES) - {"GET /readyz"}
    assert names == {"POST /detect", "POST /proposals", "GET unmatched", "_OTHER /healthz"}


def test_spans_carry_the_name_of_the_service(traced, receiver):
    names = defaultdict(set)
    for resource in receiver.resources:
        for each in resource.resource.attributes:
            names[each.key].add(each.value.string_value)
    assert names["service.name"] == {"faster-rcnn-service"}


def test_an_unreachable_receiver_delays_neither_answers_nor_shutdown(start):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        running = start(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_TIMEOUT=300).ready()
        assert running.http.post("/detect", content=GREY).status_code == 200
        assert running.stop() == 0  # `stop` waits for 30 s, a tenth of the exporter's timeout


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1"}, "pip install '.[otel]'"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "pip install '.[otel]'"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER='zipkin'"),
    ],
)
def test_the_service_does_not_start_if_traces_cannot_be_sent(variables, said):
    without = "import sys; sys.modules['opentelemetry.sdk'] = None; from service.__main__ import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True, timeout=60, env=variables
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert said in line
    assert next(iter(variables)) in line


@pytest.mark.parametrize("variables", [{}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}])
def test_without_tracing_neither_sdk_nor_exporter_is_imported(variables):
    program = """
import sys
import service.__main__
from service.telemetry import tracing
assert tracing.provider_from_environment() is None
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, env=variables
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")
