"""The contents of answers, and tests that each answer depends only on its image."""

import base64
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import answer, distinct, encoded, scene

SIZES = [(640, 480), (480, 640), (300, 300), (1024, 400), (200, 700), (1600, 1200), (64, 48), (33, 500)]
ROTATIONS = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.fixture(scope="module")
def uploads():
    return [encoded(scene(*size, seed), "JPEG") for seed, size in enumerate(SIZES)]


def detect(http, data, **query):
    return answer(http.post("/detect", content=data, headers={"Content-Type": "image/jpeg"}, params=query))


@pytest.mark.contract("3.3")
def test_an_answer_has_the_promised_members(server):
    data = encoded(scene(640, 480))
    response = server.http.post("/detect", files={"image": data}, params={"proposals": "true"})
    document = response.json()
    assert document["image"] == {"id": hashlib.sha256(data).hexdigest(), "width": 640, "height": 480}
    assert document["model"] == {"name": "shapes", "version": 1}
    assert len(document["boxes"]) == len(document["scores"]) == len(document["labels"]) > 0
    assert len(document["proposals"]["boxes"]) == len(document["proposals"]["scores"]) > 0
    assert set(document["timing"]) == {"read_ms", "decode_ms", "queue_ms", "inference_ms", "total_ms"}
    assert all(value >= 0 for value in document["timing"].values())
    assert "inference;dur=" in response.headers["server-timing"]
    assert document["scores"] == sorted(document["scores"], reverse=True)
    labels = server.http.get("/models/shapes").json()["labels"]
    assert set(document["labels"]) <= set(labels)
    for x1, y1, x2, y2 in document["boxes"] + document["proposals"]["boxes"]:
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 480


@pytest.mark.contract("3.3")
def test_an_answer_that_a_limit_cut_says_so_in_every_form(server):
    data = encoded(scene(640, 480))
    everything = server.http.post("/detect", files={"image": data})
    assert len(everything.json()["boxes"]) > 1
    assert everything.json()["truncated"] == []
    assert "answer-truncated" not in everything.headers
    for form in ("application/json", "application/x-npz", "image/png"):
        cut = server.http.post("/detect", files={"image": data}, params={"max_detections": 1}, headers={"Accept": form})
        assert cut.headers["content-type"] == form
        assert cut.headers["answer-truncated"] == "max_detections"
    # The embedded model has 100 proposals, and this image fills them all.
    proposals = server.http.post("/proposals", files={"image": data}, params={"max_proposals": 99}).json()
    assert proposals["truncated"] == ["model_proposals", "max_proposals"]


@pytest.mark.contract("1.2")
def test_images_in_a_batch_get_the_same_answers_as_alone(server, start, uploads):
    asked = {"proposals": True, "score_threshold": 0.05}
    alone = [detect(server.http, data, **asked) for data in uploads]
    batching = start(ENGINE_WORKERS=1, BATCH_PIXELS=1_500_000).ready()  # large batches
    jobs = [index % len(uploads) for index in range(6 * len(uploads))]
    with ThreadPoolExecutor(24) as pool:
        each = [distinct(uploads[index], number) for number, index in enumerate(jobs)]
        together = list(pool.map(lambda data: detect(batching.http, data, **asked), each))
    images, batches = (batching.metric(f"detector_batch_size_{part}") for part in ("sum", "count"))
    assert images == len(jobs)
    assert batches < len(jobs) / 2
    for index, among_others in zip(jobs, together, strict=True):
        expected = alone[index]
        assert among_others["labels"] == expected["labels"]
        np.testing.assert_allclose(among_others["scores"], expected["scores"], atol=1e-4)
        np.testing.assert_allclose(among_others["proposals"]["scores"], expected["proposals"]["scores"], atol=1e-4)
        for name in ("boxes", "proposals"):
            mine, theirs = (d[name]["boxes"] if name == "proposals" else d[name] for d in (among_others, expected))
            # 0.01 px on the canvas corresponds to more on an original that is larger than the canvas
            width, height = expected["image"]["width"], expected["image"]["height"]
            np.testing.assert_allclose(mine, theirs, atol=0.01 * max(1, max(width, height) / 320))


@pytest.mark.contract("5.2")
def test_the_parameters_of_one_request_do_not_affect_another(server, uploads):
    everything = detect(server.http, uploads[0], score_threshold=0)
    assert len(everything["boxes"]) > 1
    queries = [{"score_threshold": 0}, {"score_threshold": 1}, {"score_threshold": 0, "max_detections": 1}] * 8
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda query: len(detect(server.http, uploads[0], **query)["boxes"]), queries))
    assert found == [len(everything["boxes"]), 0, 1] * 8


@pytest.mark.contract("3.4")
def test_the_proposals_route_returns_the_same_proposals_as_detect(server, uploads):
    for data in uploads:
        whole = detect(server.http, data, proposals=True, max_proposals=50)
        alone = answer(
            server.http.post(
                "/proposals", content=data, headers={"Content-Type": "image/jpeg"}, params={"max_proposals": 50}
            )
        )
        assert {"boxes": alone["boxes"], "scores": alone["scores"]} == whole["proposals"]
        assert 1 <= len(alone["boxes"]) <= 50


@pytest.mark.contract("3.4")
def test_proposals_of_a_recent_upload_need_no_second_upload(server, uploads):
    first = answer(server.http.post("/proposals", files={"image": uploads[0]}))
    again = answer(server.http.get("/proposals", params={"image_id": first["image"]["id"]}))
    assert again == first


def test_a_get_with_an_image_is_answered_like_a_post(server, uploads):
    headers = {"Content-Type": "image/jpeg"}
    by_get = server.http.request("GET", "/proposals", content=uploads[1], headers=headers)
    assert answer(by_get) == answer(server.http.post("/proposals", content=uploads[1], headers=headers))


@pytest.mark.contract("3.1")
def test_every_kind_of_upload_gets_the_same_answer(server, uploads):
    data = uploads[2]
    text = base64.b64encode(data).decode()
    post = server.http.post
    answers = [
        answer(response)
        for response in (
            post("/detect", files={"image": data}),
            post("/detect", files={"file": ("../../etc/passwd\r\n", data, "text/plain")}),
            post("/detect", content=data, headers={"Content-Type": "image/jpeg"}),
            post("/detect", content=data, headers={"Content-Type": "image/anything; q=1"}),
            post("/detect", content=data, headers={"Content-Type": "application/octet-stream"}),
            post("/detect", content=data),  # without a Content-Type
            post("/detect", content=iter([data[:99], data[99:]])),  # chunked
            post("/detect", json={"image": text}),
            post("/detect", json={"image": f"data:image/jpeg;base64,{text}"}),
        )
    ]
    assert all(each == answers[0] for each in answers)


@pytest.mark.parametrize("orientation", ROTATIONS)
@pytest.mark.contract("2.3")
def test_an_image_with_an_exif_orientation_gets_the_boxes_of_the_upright_image(server, orientation):
    upright = scene(600, 400, 11)
    stored = upright if ROTATIONS[orientation] is None else upright.transpose(ROTATIONS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = answer(server.http.post("/detect", files={"image": encoded(stored, exif=exif)}))
    plain = answer(server.http.post("/detect", files={"image": encoded(upright)}))
    assert len(plain["boxes"]) > 0
    assert rotated["image"] | {"id": 0} == plain["image"] | {"id": 0}
    assert {**rotated, "image": 0} == {**plain, "image": 0}


def test_a_blank_image_is_answered_and_does_not_affect_the_next(server, uploads):
    before = detect(server.http, uploads[0])
    for colour in ("black", "white"):
        blank = answer(server.http.post("/detect", files={"image": encoded(Image.new("RGB", (500, 400), colour))}))
        assert len(blank["boxes"]) == len(blank["scores"]) == len(blank["labels"])
    assert detect(server.http, uploads[0]) == before


@pytest.mark.contract("3.2")
def test_label_and_score_filters_keep_the_matching_detections(server, uploads):
    everything = detect(server.http, uploads[0], score_threshold=0)
    label = everything["labels"][0]
    only = detect(server.http, uploads[0], score_threshold=0, label=label)
    assert only["scores"] == [
        s for s, name in zip(everything["scores"], everything["labels"], strict=True) if name == label
    ]
    confident = detect(server.http, uploads[0], score_threshold=0.3)
    assert confident["scores"] == [score for score in everything["scores"] if score >= 0.3]


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
@pytest.mark.contract("3.5")
def test_the_answer_can_be_the_image_with_its_boxes_drawn(server, media_type):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene(400, 600, 3), exif=exif)
    response = server.http.post("/detect", files={"image": data}, headers={"Accept": media_type})
    assert response.headers["content-type"] == media_type
    assert response.headers["image-id"] == hashlib.sha256(data).hexdigest()  # which the drawing itself cannot show
    drawn = Image.open(io.BytesIO(response.content))
    assert (drawn.size, Image.MIME[drawn.format or ""]) == ((600, 400), media_type)
    plain = scene(400, 600, 3).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(plain).astype(int)).max() > 100


@pytest.mark.contract("3.5")
def test_numpy_reads_an_answer_in_one_line(server, uploads):
    headers = {"Accept": "application/x-npz"}
    for path in ("/detect?proposals=true", "/proposals"):
        json = answer(server.http.post(path, content=uploads[0]))
        response = server.http.post(path, content=uploads[0], headers=headers)
        assert response.headers["content-type"] == "application/x-npz"
        assert "encode;dur=" in response.headers["server-timing"]
        found = np.load(io.BytesIO(response.content), allow_pickle=False)
        np.testing.assert_array_equal(found["boxes"], np.float32(json["boxes"]))
        np.testing.assert_array_equal(found["scores"], np.float32(json["scores"]))
        assert found["image_id"] == json["image"]["id"]
        if "labels" in json:
            assert found["labels"].tolist() == json["labels"]
            np.testing.assert_array_equal(found["proposals_boxes"], np.float32(json["proposals"]["boxes"]))


def test_models_are_described(server):
    listed = server.http.get("/models").json()
    assert listed["default"] == {"name": "shapes", "version": 1}
    assert [model["name"] for model in listed["models"]] == ["shapes"]
    assert listed["refused"] == []
    one = server.http.get("/models/shapes").json()
    assert one == listed["models"][0]
    assert one["versions"] == [1]
    assert len(one["sha256"]) == 64
    assert one["provider"].endswith("ExecutionProvider")
    assert all(side % 16 == 0 for canvas in one["canvases"] for side in canvas)
    assert server.http.get("/models/shapes", params={"version": 1}).json() == one


@pytest.mark.contract("3.7")
def test_a_running_service_is_alive_and_ready(server):
    assert server.http.get("/healthz").json() == {"status": "alive"}
    ready = server.http.get("/readyz").json()
    assert (ready["status"], ready["models"]) == ("ready", ["shapes/1"])
    assert ready["provider"].endswith("ExecutionProvider")
    if ready["provider"].startswith("CPU"):
        assert "; " in ready["why_cpu"]  # the reason and the remedy
    else:
        assert ready["why_cpu"] is None
        assert [gpu["architecture"][:3] for gpu in ready["gpus"] if not gpu["fault"]]


def test_a_request_keeps_its_own_id_if_the_id_is_valid(server):
    assert server.http.get("/healthz", headers={"X-Request-ID": "a-1.b_2"}).headers["x-request-id"] == "a-1.b_2"
    for harmful in ("a b", "x" * 65, "<script>", ""):
        assert server.http.get("/healthz", headers={"X-Request-ID": harmful}).headers["x-request-id"] != harmful


@pytest.mark.contract("3.8")
def test_answers_and_problems_repeat_the_id_of_their_request(server, uploads):
    for path, body, status in (("/detect", uploads[0], 200), ("/detect", b"x", 400), ("/proposals?x=1", b"", 422)):
        response = server.http.post(path, content=body, headers={"X-Request-ID": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "mine")


def test_head_is_answered_on_every_route_that_answers_get(server):
    for path in ("/", "/docs", "/healthz", "/readyz", "/metrics", "/models", "/models/shapes", "/openapi.json"):
        response = server.http.head(path)
        assert (response.status_code, response.content) == (200, b""), path
        assert int(response.headers["content-length"]) > 0
    assert server.http.head("/models/none").status_code == 404
    assert server.metric("detector_request_seconds_count", method="HEAD", route="/models/{name}", status="200") == 1
