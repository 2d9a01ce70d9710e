"""LOG_FORMAT=json: every line of the log is a JSON object, and the access log names its parts."""

import json

import pytest
from PIL import Image

from tests.end_to_end.conftest import encoded, eventually

WHITE = encoded(Image.new("RGB", (96, 64), "white"))


@pytest.mark.contract("7.9")
def test_every_line_of_the_log_is_json(start):
    server = start(LOG_FORMAT="json", ACCESS_LOG=1, MODEL_STOR="x").ready()
    assert server.http.post("/detect?secret=1", content=WHITE, headers={"X-Request-ID": "mine"}).status_code == 422
    eventually(lambda: any("mine" in line for line in server.lines))
    lines = [json.loads(line) for line in server.lines if not line.startswith("serving ")]
    assert all({"timestamp", "severity_text", "severity_number", "body", "scope"} <= line.keys() for line in lines)
    assert any(line["severity_text"] == "WARNING" and "MODEL_STORE" in line["body"] for line in lines)
    (access,) = [line["attributes"] for line in lines if line["scope"]["name"] == "service.access"]
    assert access.pop("http.server.request.duration") > 0
    assert access == {
        "client.address": "127.0.0.1",
        "http.request.method": "POST",
        "http.response.status_code": 422,
        "http.route": "/detect",
        "network.protocol.version": "1.1",
        "request.id": "mine",
        "url.path": "/detect",
    }
