"""Concurrent requests with different parameters over HTTP: each gets the same answer as when it is alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.end_to_end.conftest import Server, distinct, encoded
from tests.service import graphs

LEVELS = (40, 102, 150, 230)
IMAGES = [
    encoded(Image.new("RGB", size, (level, level, level)))
    for level, size in zip(LEVELS, [(96, 64), (64, 96), (300, 200), (50, 50)], strict=True)
]
UPLOADS = [*IMAGES, b"hello", IMAGES[0][: len(IMAGES[0]) // 2]]

queries = st.fixed_dictionaries(
    {},
    optional={
        "score_threshold": st.sampled_from([0, 0.1, 0.3, 0.5, 2]),
        "max_detections": st.sampled_from([0, 1, 2]),
        "label": st.sampled_from(["first", "second", "third"]),
        "proposals": st.sampled_from(["true", "false"]),
        "max_proposals": st.sampled_from([1, 2]),
        "priority": st.sampled_from(["interactive", "bulk"]),
        "timeout": st.sampled_from([5, 20]),
    },
)
paths = st.sampled_from(["/detect", "/detect", "/proposals"])
requests = st.tuples(paths, queries, st.integers(0, len(UPLOADS) - 1), st.booleans())


def batching(store: Path, **settings: object) -> Server:
    graphs.publish(store)
    return Server(MODEL_STORE=store, ENGINE_WORKERS=1, **settings).ready()


@pytest.mark.contract("5.2")
def test_any_mixture_of_requests_gets_the_same_answers_as_each_request_alone(tmp_path):
    running = batching(tmp_path, BATCH_PIXELS=10_000_000)
    try:
        answer_any_mixture(running, examples=150)
        assert running.metric("detector_batch_size_sum") > running.metric("detector_batch_size_count")
    finally:
        running.stop()


@pytest.mark.contract("1.2")
@pytest.mark.contract("5.2")
def test_the_same_is_true_of_sessions_with_fixed_shapes(tmp_path):
    running = batching(tmp_path, BATCH_PIXELS=8 * 64 * 96, FIXED_SHAPES="true")
    try:
        answer_any_mixture(running, examples=40)
    finally:
        running.stop()


def answer_any_mixture(batching: Server, examples: int) -> None:
    alone: dict[Any, Any] = {}

    def ask(number: int, path: str, query: dict[str, Any], which: int, own: bool) -> Any:
        data = distinct(UPLOADS[which], number) if own else UPLOADS[which]
        response = batching.http.post(path, params=query, content=data)
        document = response.json()
        for name in ("timing", "request_id"):
            document.pop(name, None)
        if own and response.status_code == 200:
            document["image"].pop("id")
        return response.status_code, document

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests, min_size=2, max_size=10))
    def any_mixture(mixture: list[tuple[str, dict[str, Any], int, bool]]) -> None:
        with ThreadPoolExecutor(len(mixture)) as pool:
            together = list(pool.map(lambda each: ask(each[0], *each[1]), enumerate(mixture)))
        for number, (each, found) in enumerate(zip(mixture, together, strict=True)):
            path, query, which, own = each
            key = (path, str(query), which, own)
            if key not in alone:
                alone[key] = ask(number, *each)
            assert found == alone[key]

    any_mixture()
    statuses = {status for status, _ in alone.values()}
    assert {200, 400, 422} <= statuses <= {200, 400, 422}
