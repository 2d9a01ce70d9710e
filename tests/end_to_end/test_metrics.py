"""The values of /metrics after a few known requests."""

import pytest
from PIL import Image

from service.recent_uploads import OWNER_OVERHEAD, UPLOAD_OVERHEAD
from tests.end_to_end.conftest import Server, encoded
from tests.service import graphs

GREY = encoded(Image.new("RGB", (96, 32), (102, 102, 102)))  # on a canvas of 96 x 64: half of it is padding


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    graphs.publish(store, "plain", 4)
    running = Server(MODEL_STORE=store).ready()
    for _ in range(3):
        assert running.http.post("/detect", content=GREY).status_code == 200
    assert running.http.post("/detect?label=first", content=GREY).status_code == 200
    assert running.http.post("/proposals", content=GREY).status_code == 200
    assert running.http.post("/detect", content=b"hello").status_code == 400
    assert running.http.get("/models/" + "x" * 50).status_code == 404
    assert running.http.get("/" + "y" * 50).status_code == 404
    assert running.http.request("PROPFIND", "/healthz").status_code == 405
    yield running
    running.stop()


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("detector_request_seconds_count", {"route": "/detect", "method": "POST", "status": "200"}, 4),
        ("detector_request_seconds_count", {"route": "/detect", "status": "400"}, 1),
        ("detector_request_seconds_count", {"route": "/proposals", "status": "200"}, 1),
        ("detector_request_seconds_count", {"route": "/models/{name}", "status": "404"}, 1),
        ("detector_request_seconds_count", {"route": "unmatched", "status": "404"}, 1),
        ("detector_request_seconds_count", {"method": "other"}, 1),
        ("detector_stage_seconds_count", {"stage": "read"}, 5),
        ("detector_stage_seconds_count", {"stage": "decode"}, 5),
        ("detector_stage_seconds_count", {"stage": "queue"}, 5),
        ("detector_stage_seconds_count", {"stage": "inference"}, 5),
        ("detector_stage_seconds_count", {"stage": "encode"}, 5),
        ("detector_batch_size_sum", {"graph": "full"}, 4),
        ("detector_batch_size_sum", {"graph": "proposals"}, 1),
        ("detector_batch_padded_ratio_sum", {}, 5 * 0.5),
        ("detector_queue_depth", {}, 0),
        ("detector_requests_in_flight", {}, 0),
        ("detector_rejected_total", {"reason": "not_an_image"}, 1),
        ("detector_rejected_total", {"reason": "unknown_model"}, 1),
        ("detector_failed_total", {}, 0),
        ("detector_detections_total", {"model": "plain", "version": "4", "label": "first"}, 4),
        ("detector_detections_total", {"model": "plain", "version": "4", "label": "second"}, 3),
        ("detector_detections_per_image_sum", {}, 7),
        ("detector_upload_bytes_total", {}, 5 * len(GREY) + 5),
        ("detector_recent_uploads_bytes", {}, len(GREY) + UPLOAD_OVERHEAD + OWNER_OVERHEAD),
        ("detector_ready", {}, 1),
        ("detector_model_info", {"model": "plain", "version": "4"}, 1),
    ],
)
def test_a_metric_has_the_value_expected_after_the_known_requests(counted, name, labels, value):
    assert counted.metric(name, **labels) == pytest.approx(value)


def test_no_text_from_a_client_becomes_a_label(counted):
    scrape = counted.http.get("/metrics")
    assert scrape.headers["content-type"].startswith("text/plain; version=")
    for word in ("xxxxx", "yyyyy", "PROPFIND"):
        assert word not in scrape.text
