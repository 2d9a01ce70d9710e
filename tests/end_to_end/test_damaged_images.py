"""Images that can be decoded although part of them is missing: what an answer says, and what `strict` refuses."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.end_to_end.conftest import answer, distinct, encoded, problem, scene

WHOLE = encoded(scene(640, 480), "JPEG", quality=90)
CUT = WHOLE[: len(WHOLE) // 2] + b"\xff\xd9"  # with the end marker put back, so that decoders accept it
JPEG = {"Content-Type": "image/jpeg"}


@pytest.mark.contract("3.3")
@pytest.mark.parametrize("path", ["/detect", "/proposals"])
def test_the_answer_for_a_damaged_image_has_a_warning_and_that_for_a_whole_one_has_none(server, path):
    whole = server.http.post(path, content=WHOLE, headers=JPEG)
    assert answer(whole)["warnings"] == []
    assert "image-warnings" not in whole.headers
    cut = server.http.post(path, content=CUT, headers=JPEG)
    (warning,) = answer(cut)["warnings"]
    assert warning["reason"] == "damaged_data"
    assert "ends early" in warning["detail"]
    assert "Send the original file" in warning["detail"]
    assert cut.headers["image-warnings"] == "damaged_data"


def test_the_npz_and_drawn_answers_carry_the_words(server):
    for data, words in ((WHOLE, []), (CUT, ["damaged_data"])):
        response = server.http.post("/detect", content=data, headers=JPEG | {"Accept": "application/x-npz"})
        with np.load(io.BytesIO(response.content), allow_pickle=False) as file:
            assert file["warnings"].tolist() == words
        drawn = server.http.post("/detect", content=data, headers=JPEG | {"Accept": "image/png"})
        assert drawn.headers.get("image-warnings", "") == "".join(words)


@pytest.mark.contract("3.6")
def test_with_strict_a_damaged_image_is_refused_on_every_route(server):
    for path in ("/detect", "/proposals"):
        assert server.http.post(path, content=WHOLE, headers=JPEG, params={"strict": "true"}).status_code == 200
        refused = problem(server.http.post(path, content=CUT, headers=JPEG, params={"strict": "true"}), 400)
        assert refused["reason"] == "damaged_image"
        assert "ends early" in refused["detail"]
        assert [each["reason"] for each in refused["warnings"]] == ["damaged_data"]
        answer(server.http.post(path, content=CUT, headers=JPEG, params={"strict": "false"}))
    recent = {"image_id": hashlib.sha256(CUT).hexdigest()}
    answer(server.http.get("/proposals", params=recent))
    problem(server.http.get("/proposals", params=recent | {"strict": "true"}), 400)
    with_body = server.http.request("GET", "/proposals", content=CUT, headers=JPEG, params={"strict": "true"})
    assert problem(with_body, 400)["reason"] == "damaged_image"


def test_strict_and_other_requests_with_the_same_bytes_at_the_same_time_each_get_their_answer(server):
    before = server.metric("detector_image_warnings_total", reason="damaged_data")
    large = encoded(scene(3000, 2000), "PNG")  # keeps the threads busy while other requests join a task

    def status(number: int) -> int:
        if number < 4:
            return server.http.post("/detect", content=distinct(large, number), headers=JPEG).status_code
        return server.http.post("/detect", content=CUT, headers=JPEG, params={"strict": number % 2}).status_code

    with ThreadPoolExecutor(36) as pool:
        found = list(pool.map(status, range(36)))
    assert found == [200] * 4 + [200, 400] * 16
    assert server.metric("detector_image_warnings_total", reason="damaged_data") - before == 32


def test_warnings_and_refusals_are_counted(server):
    def counts() -> np.ndarray:
        warnings = server.metric("detector_image_warnings_total", reason="damaged_data")
        others = server.metric("detector_image_warnings_total") - warnings
        return np.array([warnings, others, server.metric("detector_rejected_total", reason="damaged_image")])

    before = counts()
    for strict in ("false", "false", "true"):
        server.http.post("/detect", content=CUT, headers=JPEG, params={"strict": strict})
    server.http.post("/detect", content=WHOLE, headers=JPEG)
    assert (counts() - before).tolist() == [3, 0, 1]
