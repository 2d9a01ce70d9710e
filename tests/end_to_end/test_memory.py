"""The service in a control group whose memory the largest images would exceed if they were decoded freely."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.memory_group import MemoryGroup, NoMemoryGroupError, memory_group
from tests.end_to_end.conftest import Server, answer, distinct, encoded, problem, scene

MIB = 2**20
LIMIT = 768 * MIB
SMALL = encoded(scene(320, 240), "JPEG")
# Runs the service in the control group whose folder is the first argument.
IN_GROUP = """
import os, pathlib, runpy, sys
(pathlib.Path(sys.argv.pop(1)) / "cgroup.procs").write_text(str(os.getpid()))
runpy.run_module("service", run_name="__main__")
"""


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    try:
        with memory_group(LIMIT) as group:
            yield group
    except NoMemoryGroupError as reason:
        pytest.skip(str(reason))


def large_files() -> dict[str, bytes]:
    """Files of less than a megabyte that would each take 200 to 800 MB to decode or draw in one piece."""
    palette = Image.new("P", (8000, 8000), 1)
    palette.putpalette(list(range(256)) * 3)
    return {
        "transparent": encoded(Image.new("RGBA", (4000, 4000), (200, 10, 10, 90)), compress_level=1),
        "palette": encoded(palette, compress_level=1, transparency=bytes(range(256))),
        "progressive": encoded(Image.new("RGB", (4000, 4000), "red"), "JPEG", progressive=True),
    }


@pytest.mark.contract("5.6")
def test_large_images_at_once_stay_within_the_memory_of_the_control_group(group, start):
    server: Server = start(("-c", IN_GROUP, str(group.folder)), REQUEST_TIMEOUT=300).ready()
    server.http.timeout = 300
    files = large_files()
    accepts = ["application/json", "image/png", "image/jpeg"]
    requests = [(distinct(data, number), accepts[number]) for number in range(3) for data in files.values()]

    def send(request: tuple[bytes, str]) -> httpx.Response:
        data, accept = request
        return server.http.post("/detect", content=data, headers={"Accept": accept})

    with ThreadPoolExecutor(len(requests)) as pool:
        sent = [pool.submit(send, request) for request in requests]
        small = []
        while not all(each.done() for each in sent):
            small.append(answer(server.http.post("/detect", content=SMALL)))
        responses = [each.result() for each in sent]
    assert all(each == small[0] for each in small)
    # decoding fits for all of them; a drawing may not
    assert [response.status_code for response in responses[: len(files)]] == [200] * len(files)
    for response in responses:
        if response.status_code != 200:
            assert problem(response, 413)["reason"] == "too_much_memory"
    drawn = next(each for each in responses if each.headers["content-type"] == "image/png")
    assert Image.open(io.BytesIO(drawn.content)).size == (4000, 4000)
    assert group.kills() == 0
    assert server.process.poll() is None
    assert server.metric("detector_memory_bytes", part="work") == 0
    lines = "".join(server.lines)
    assert f"the limit is {LIMIT // MIB} MiB" in lines


@pytest.mark.contract("5.6")
def test_an_image_beyond_the_memory_budget_is_refused_with_the_limit_and_the_setting(start):
    server = start(MEMORY_BUDGET="64MiB").ready()
    assert "MEMORY_BUDGET is 64 MiB; one image may take up to 48 MiB" in "".join(server.lines)
    image = encoded(Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)), compress_level=1)
    for accept in ("application/json", "image/png"):
        document = problem(server.http.post("/detect", content=image, headers={"Accept": accept}), 413)
        assert document["reason"] == "too_much_memory"
        assert "MEMORY_BUDGET" in document["detail"]
        assert document["needed_bytes"] > document["limit_bytes"] == 48 * MIB
    assert server.metric("detector_rejected_total", reason="too_much_memory") == 2
    answer(server.http.post("/detect", content=SMALL))
    assert server.metric("detector_memory_bytes", part="limit") == 64 * MIB
