"""Several engines, here two on the CPU: any idle engine runs the next waiting image."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.conftest import Server, distinct, encoded, eventually
from tests.service import graphs

GREY = encoded(Image.new("RGB", (96, 64), (102, 102, 102)))  # brightness 0.4
DEVICES = ("cpu:0", "cpu:1")


@pytest.fixture
def server(start, tmp_path) -> Server:
    """Two engines, each with one run at a time. `quick` takes milliseconds per image, `slow` a second or more."""
    graphs.publish(tmp_path, "quick", work=2)
    graphs.publish(tmp_path, "slow", work=300)
    settings = {"ENGINES": 2, "ENGINE_WORKERS": 1, "ENGINE_THREADS": 1, "DEFAULT_MODEL": "quick"}
    return start(MODEL_STORE=tmp_path, **settings).ready()


def busy(server: Server) -> list[float]:
    return [server.metric("detector_engine_busy_seconds_total", device=device) for device in DEVICES]


def test_both_engines_have_a_budget(server):
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    (family,) = (each for each in families if each.name == "detector_batch_budget_pixels")
    assert [sample.labels["device"] for sample in family.samples] == list(DEVICES)
    assert all(sample.value > 0 for sample in family.samples)


def test_both_engines_work_under_load(server):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: server.http.post("/detect", content=distinct(GREY, n)), range(80)))
    assert all(answer.json()["scores"] == [0.4, 0.2] for answer in answers)
    assert server.metric("detector_batch_size_sum") == 80
    first, second = busy(server)
    assert min(first, second) > max(first, second) / 10


def test_one_engine_answers_while_the_other_is_busy_with_a_slow_image(server):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.http.post, "/detect?model=slow", content=distinct(GREY, 0))
        eventually(lambda: server.metric("detector_upload_bytes_total") > 0)
        answers = [server.http.post("/detect", content=distinct(GREY, n)) for n in range(1, 6)]
        assert not slow.done()
        assert all(answer.json()["scores"] == [0.4, 0.2] for answer in answers)
        # one engine has finished runs, and the other is still busy with its first
        assert sorted(seconds > 0 for seconds in busy(server)) == [False, True]
