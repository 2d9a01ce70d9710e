"""The load generator, against real servers whose behaviour is known."""

import contextlib
import io
import itertools
import json
import random
import socketserver
import statistics
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.load.decode_and_detect import Found
from benchmarks.load.load_generator import Generator, Target, arrivals, same
from benchmarks.load.uploads import SIZES, Upload, any_sizes, of_folder, of_one_image, upload
from benchmarks.workers import Failed

IMAGE = Path(__file__).parents[2] / "model_store" / "shapes" / "1" / "example.jpg"
RIGHT = {"boxes": [[1.0, 2.0, 3.0, 4.0]], "scores": [0.75], "labels": ["ring"]}


class Known(ThreadingHTTPServer):
    """Answers every POST after `seconds`, one at a time. It refuses or closes one request in `refuses` or `closes`."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, seconds: float = 0.0, refuses: int = 0, closes: int = 0, answer: object = RIGHT) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seconds, self.refuses, self.closes, self.answer = seconds, refuses, closes, answer
        self.turn, self.bodies = threading.Lock(), list[bytes]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/detect"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores clients that disconnect, which they do on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment: a delayed acknowledgement would cost 40 ms

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Known)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.turn:
            time.sleep(server.seconds)
            server.bodies.append(body)
            number = len(server.bodies)
        if server.closes and number % server.closes == 0:
            self.close_connection = True
            return
        refused = server.refuses and number % server.refuses == 0
        answer = json.dumps({"detail": "full"} if refused else server.answer).encode()
        self.send_response(429 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: Known) -> Iterator[Known]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        socketserver.TCPServer.server_close(server)


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with contextlib.closing(Generator()) as generator:
        yield generator


@pytest.fixture(scope="module")
def uploads() -> list[Upload]:
    return of_one_image(IMAGE)


def test_every_upload_is_a_different_file_with_the_same_pixels(uploads: list[Upload]) -> None:
    first, second = uploads[0].numbered(1), uploads[0].numbered(2)
    assert first != second
    assert len(first) == uploads[0].size
    with Image.open(io.BytesIO(first)) as one, Image.open(io.BytesIO(second)) as other:
        assert one.size == SIZES[0]
        assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def test_a_file_that_is_not_a_jpeg_is_refused_with_the_reason() -> None:
    with pytest.raises(Failed, match="only JPEGs can be sent"):
        upload(b"\x89PNG\r\n")


def test_photographs_of_a_folder_are_drawn_with_the_seed_and_have_mixed_sizes(tmp_path: Path) -> None:
    for n in range(6):
        Image.new("RGB", (640, 480), (n, 0, 0)).save(tmp_path / f"{n}.JPG")
    (tmp_path / "notes.txt").write_text("not an image")
    drawn = of_folder(tmp_path, 4, seed=0)
    sizes = [Image.open(io.BytesIO(one.numbered(0))).size for one in drawn]
    assert len(drawn) == 4
    assert sizes[0] == sizes[2] == (640, 480)  # every other one is sent unchanged
    assert sizes[1] != (640, 480)
    assert drawn == of_folder(tmp_path, 4, seed=0)
    assert drawn != of_folder(tmp_path, 4, seed=1)
    with pytest.raises(Failed, match="name a folder of photographs"):
        of_folder(tmp_path / "empty", 4, seed=0)


def test_random_sizes_stay_within_their_bounds() -> None:
    sizes = [Image.open(io.BytesIO(one.numbered(0))).size for one in any_sizes(IMAGE, 20, random.Random(0))]
    assert len(set(sizes)) == 20
    for width, height in sizes:
        assert min(width, height) >= 32
        assert max(width, height) <= min(2000, 4 * min(width, height))


def test_arrivals_follow_the_rate_and_are_the_same_for_the_same_seed() -> None:
    moments = arrivals(100, 50, seed=3)
    assert moments == sorted(moments) == arrivals(100, 50, seed=3)
    assert moments != arrivals(100, 50, seed=4)
    assert abs(len(moments) - 5000) < 4 * 5000**0.5  # a Poisson number: four standard deviations
    gaps = sorted(b - a for a, b in itertools.pairwise(moments))
    assert 0.0062 < gaps[len(gaps) // 2] < 0.0077  # ln 2 / rate = 6.9 ms, where a steady stream has 10 ms


def test_in_a_closed_loop_every_client_has_one_request_in_flight(generator: Generator, uploads: list[Upload]) -> None:
    with serving(Known(seconds=0.02)) as server:
        load = generator.closed(Target(server.url, uploads), clients=3, seconds=0.6)
    assert set(load.outcomes) == {"200"}
    assert 0 < load.rate <= 50  # one at a time, 20 ms each
    # Most requests wait behind at least one whole request of another client. On a busy machine, clients may be late.
    assert statistics.median(load.latencies) >= 0.04
    assert len(server.bodies) == load.answered == len(set(server.bodies))  # no two uploads are the same
    assert load.cpu_seconds > 0


def test_in_an_open_loop_latency_counts_from_when_an_image_was_due(generator: Generator, uploads: list[Upload]) -> None:
    """Offered 100/s, answered 33/s: of about 200 in 1.0 + 1.0 s the last is answered after 6 s, 4 s late.

    A client that waited for an answer before sending would never see more than 30 ms.
    """
    with serving(Known(seconds=0.03)) as server:
        load = generator.open(Target(server.url, uploads), rate=100, seconds=1.0, seed=0)
    assert load.rate <= 34
    assert len(load.latencies) == load.outcomes["200"] == sum(1 <= due < 2 for due in arrivals(100, 2.0, 0))
    assert max(load.latencies) > 2.5
    assert len(server.bodies) == len(arrivals(100, 2.0, 0))


def test_recovery_takes_as_long_as_the_backlog(generator: Generator, uploads: list[Upload]) -> None:
    with serving(Known(seconds=0.02)) as server:
        load = generator.open(Target(server.url, uploads), rate=100, seconds=0.5, seed=0, normal=0.1)
    # 1.5 s of about 100 requests a second at 50 a second leave 1.5 s of work
    assert load.back is not None
    assert load.back > 0.5


def test_refusals_are_counted_and_timed_separately_from_answers(generator: Generator, uploads: list[Upload]) -> None:
    with serving(Known(refuses=4)) as server:
        load = generator.open(Target(server.url, uploads), rate=60, seconds=1.0, seed=1)
    assert len(load.refusals) == load.outcomes["429"] > 0
    assert len(load.latencies) == load.outcomes["200"]
    assert load.outcomes["429"] < load.outcomes["200"]


def test_a_connection_that_is_closed_is_a_failure_and_the_client_goes_on(
    generator: Generator, uploads: list[Upload]
) -> None:
    with serving(Known(seconds=0.005, closes=5)) as server:
        load = generator.closed(Target(server.url, uploads), clients=2, seconds=0.5)
    assert load.outcomes["no connection"] >= 2
    assert load.outcomes["200"] > load.outcomes["no connection"]


def test_a_server_that_is_not_running_is_a_failure_and_not_a_crash(generator: Generator, uploads: list[Upload]) -> None:
    with serving(Known()) as server:
        url = server.url
    load = generator.closed(Target(url, uploads), clients=2, seconds=0.1)
    assert set(load.outcomes) == {"no connection"}
    assert load.rate == load.answered == 0


def test_wrong_answers_and_answers_without_boxes_do_not_count(generator: Generator, uploads: list[Upload]) -> None:
    wrong = RIGHT | {"boxes": [[1.0, 2.0, 3.0, 9.0]]}
    right = [Found(**RIGHT)] * len(uploads)  # type: ignore[arg-type]  the same keys
    with serving(Known(answer=wrong)) as server:
        load = generator.closed(Target(server.url, uploads, right), clients=2, seconds=0.3)
    assert load.outcomes["wrong"] > 0
    with serving(Known(answer={"hello": 1})) as server:
        load = generator.closed(Target(server.url, uploads), clients=2, seconds=0.1)
    assert set(load.outcomes) == {"without boxes"}


@pytest.mark.parametrize(
    ("change", "equal"),
    [
        ({}, True),
        ({"scores": [0.7505], "boxes": [[1.05, 2.0, 3.0, 4.0]]}, True),
        ({"scores": [0.76]}, False),
        ({"boxes": [[1.2, 2.0, 3.0, 4.0]]}, False),
        ({"labels": ["star"]}, False),
        ({"labels": [], "boxes": [], "scores": []}, False),
        ({"boxes": [[1.0, 2.0, 3.0]]}, False),
    ],
)
def test_boxes_may_differ_by_a_tenth_of_a_pixel_and_scores_by_a_thousandth(
    change: dict[str, object], equal: bool
) -> None:
    assert same(json.dumps(RIGHT | change).encode(), Found(**RIGHT)) is equal  # type: ignore[arg-type]
