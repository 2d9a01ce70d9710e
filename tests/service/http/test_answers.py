import dataclasses
import io

import numpy as np
import orjson
import pytest

from service.engine.card import Card
from service.engine.engine import Result
from service.http import answers
from service.http.answers import JSON, preferred
from service.http.routes.detect import OFFERED
from service.http.schemas import DetectAnswer, DetectQuery, ProposalsAnswer, ProposalsQuery
from service.runtime import Inference
from service.telemetry.metrics import Metrics
from tests.service import graphs

CARD = Card(
    name="m",
    version=3,
    labels=["cat", "dog", "cow"],
    canvases=[(64, 64)],
    resize=graphs.RESIZE,  # type: ignore[arg-type]
    score_threshold=0.5,
    sha256="0" * 64,
)
RESULT = Result(
    boxes=np.array([[0, 0, 10, 10], [1, 1, 2, 2], [2, 2, 3.00049, 3.12345]], np.float32),
    scores=np.array([0.9, 0.6, 0.3], np.float32),
    labels=np.array([1, 0, 1]),
    proposals=np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32),
    objectness=np.array([1, 0.123456789], np.float32),
)
SECONDS = {"read": 0.001, "decode": 0.002, "queue": 0, "inference": 0.01, "total": 0.013}
INFERENCE = Inference("f" * 64, 640, 480, RESULT, SECONDS)


def detect(**query: object) -> dict:
    answer = answers.detections(INFERENCE, CARD, DetectQuery.model_validate(query))
    document: dict = orjson.loads(answers.to_json(answer))
    DetectAnswer.model_validate(document)  # as /openapi.json documents it
    return document


def test_the_models_threshold_applies_unless_the_request_sets_its_own():
    assert detect()["scores"] == [0.9, 0.6]
    assert detect(score_threshold=0)["scores"] == [0.9, 0.6, 0.3]
    assert detect(score_threshold=1)["scores"] == []
    assert detect(score_threshold=1)["boxes"] == []


def test_max_detections_keeps_the_best():
    assert detect(max_detections=1)["labels"] == ["dog"]


def test_labels_are_filtered_before_max_detections_applies():
    assert detect(label=["cat"], max_detections=1)["labels"] == ["cat"]
    assert detect(label=["cat", "dog"], score_threshold=0)["labels"] == ["dog", "cat", "dog"]
    assert detect(label=["cow"])["labels"] == []


def test_detect_returns_proposals_only_on_request_and_the_same_as_the_proposals_route():
    assert "proposals" not in detect()
    with_proposals = detect(proposals=True, max_proposals=1)["proposals"]
    alone = answers.proposals(INFERENCE, CARD, ProposalsQuery(max_proposals=1))
    document = orjson.loads(answers.to_json(alone))
    ProposalsAnswer.model_validate(document)
    assert with_proposals == {"boxes": document["boxes"], "scores": document["scores"]}
    assert document["boxes"] == [[0, 0, 1, 1]]


def cut(left_out: float, all_proposals: bool = True) -> Inference:
    """RESULT, if the graph's limits were reached."""
    result = dataclasses.replace(RESULT, left_out=np.float32(left_out), all_proposals=all_proposals)
    return INFERENCE._replace(result=result)


@pytest.mark.contract("3.3")
@pytest.mark.parametrize(
    ("inference", "query", "truncated"),
    [
        # scores are 0.9, 0.6 and 0.3, the model's threshold is 0.5, and there are two proposals
        (INFERENCE, {}, []),
        (INFERENCE, {"max_detections": 2}, []),
        (INFERENCE, {"max_detections": 1}, ["max_detections"]),
        (INFERENCE, {"max_detections": 2, "score_threshold": 0}, ["max_detections"]),
        (INFERENCE, {"max_detections": 1, "label": ["cat"]}, []),
        (cut(0.3), {}, []),  # what the graph left out has a score of at most 0.3, and 0.5 is asked for
        (cut(0.3), {"score_threshold": 0.31}, []),
        (cut(0.3), {"score_threshold": 0.3}, ["model_detections"]),
        (cut(0.3), {"score_threshold": 0.1, "label": ["cow"]}, ["model_detections"]),
        (cut(0.3), {"score_threshold": 0, "max_detections": 1}, ["model_detections", "max_detections"]),
        (cut(0, all_proposals=False), {}, []),  # no proposals are asked for
        (cut(0, all_proposals=False), {"proposals": True}, ["model_proposals"]),
        (INFERENCE, {"proposals": True, "max_proposals": 2}, []),
        (cut(0, all_proposals=False), {"proposals": True, "max_proposals": 1}, ["model_proposals", "max_proposals"]),
    ],
)
def test_an_answer_says_which_limits_cut_it(inference, query, truncated):
    answer = answers.detections(inference, CARD, DetectQuery.model_validate(query))
    document = orjson.loads(answers.to_json(answer))
    DetectAnswer.model_validate(document)
    assert document["truncated"] == truncated
    assert np.load(io.BytesIO(answers.to_npz(answer, CARD)), allow_pickle=False)["truncated"].tolist() == truncated
    sent = answers.encoded_response(b"", answer, inference, "image/png", 0.0, Metrics())
    assert sent.headers.get("Answer-Truncated", "") == ", ".join(truncated)


def test_an_answer_to_proposals_says_which_limits_cut_it():
    for inference, query, truncated in (
        (INFERENCE, {}, []),
        (INFERENCE, {"max_proposals": 1}, ["max_proposals"]),
        (cut(0, all_proposals=False), {}, ["model_proposals"]),
    ):
        answer = answers.proposals(inference, CARD, ProposalsQuery.model_validate(query))
        document = orjson.loads(answers.to_json(answer))
        ProposalsAnswer.model_validate(document)
        assert document["truncated"] == truncated


def test_pixels_have_three_decimals_and_scores_six():
    assert detect(score_threshold=0)["boxes"][2] == [2, 2, 3.0, 3.123]
    everything = answers.proposals(INFERENCE, CARD, ProposalsQuery())
    assert orjson.loads(answers.to_json(everything))["scores"] == [1, 0.123457]


def test_the_answer_names_the_image_the_model_and_the_time_of_each_stage():
    document = detect()
    assert document["image"] == {"id": "f" * 64, "width": 640, "height": 480}
    assert document["model"] == {"name": "m", "version": 3}
    assert document["timing"] == {
        "read_ms": 1, "decode_ms": 2, "queue_ms": 0, "inference_ms": 10, "total_ms": 13,
    }  # fmt: skip


def test_warnings_are_listed_with_their_details_in_json_and_as_words_in_npz():
    damaged = INFERENCE._replace(warnings=("missing_scans", "damaged_data"))
    for answer in (
        answers.detections(damaged, CARD, DetectQuery()),
        answers.proposals(damaged, CARD, ProposalsQuery()),
    ):
        found = orjson.loads(answers.to_json(answer))["warnings"]
        assert [each["reason"] for each in found] == ["missing_scans", "damaged_data"]
        assert all(each["detail"].endswith("Send the original file.") for each in found)
        members = np.load(io.BytesIO(answers.to_npz(answer, CARD)), allow_pickle=False)
        assert members["warnings"].tolist() == ["missing_scans", "damaged_data"]
    assert detect()["warnings"] == []


def test_the_npz_answer_has_the_same_content_as_the_json_answer():
    answer = answers.detections(INFERENCE, CARD, DetectQuery(proposals=True))
    with np.load(io.BytesIO(answers.to_npz(answer, CARD)), allow_pickle=False) as file:
        members = dict(file)
    json = orjson.loads(answers.to_json(answer))
    assert set(members) == {
        "image_id", "image_width", "image_height", "model_name", "model_version",
        "boxes", "scores", "labels", "label_indices", "proposals_boxes", "proposals_scores", "warnings", "truncated",
    }  # fmt: skip
    assert {
        name: array.dtype for name, array in members.items() if "boxes" in name or "scores" in name
    } == dict.fromkeys(("boxes", "scores", "proposals_boxes", "proposals_scores"), np.float32)
    np.testing.assert_array_equal(members["boxes"], np.float32(json["boxes"]))
    np.testing.assert_array_equal(members["proposals_scores"], np.float32(json["proposals"]["scores"]))
    assert members["labels"].tolist() == json["labels"] == ["dog", "cat"]
    assert members["label_indices"].tolist() == [1, 0]
    assert (members["image_id"], members["image_width"], members["image_height"]) == ("f" * 64, 640, 480)
    assert (members["model_name"], members["model_version"]) == ("m", 3)


def test_an_npz_answer_without_detections_has_empty_arrays():
    answer = answers.detections(INFERENCE, CARD, DetectQuery(score_threshold=1))
    members = np.load(io.BytesIO(answers.to_npz(answer, CARD)), allow_pickle=False)
    assert [members[name].shape for name in ("boxes", "scores", "labels", "label_indices")] == [
        (0, 4),
        (0,),
        (0,),
        (0,),
    ]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("application/x-npz", "application/x-npz"),
        ("application/x-npz;q=0.5, application/json;q=0.4", "application/x-npz"),
        ("application/json, application/x-npz", JSON),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/*", "image/png"),
        ("IMAGE/JPEG; q=0.5", "image/jpeg"),
        ("application/json, image/png", JSON),
        ("image/png, application/json;q=0.9", "image/png"),
        ("image/png;q=0.1, */*", JSON),
        ("image/jpeg;q=0.5, image/png;q=0.8", "image/png"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", JSON),
        ("image/png;q=0", JSON),
        ("image/png;q=junk", JSON),
        ("image/png;q=nan, application/x-npz;q=0.1", "application/x-npz"),
        ("image/png;q=inf", JSON),
        ("image/png;q=1e0", JSON),
        ("image/png;q=2", JSON),
        ("image/png;q=0.9999", JSON),
        ("image/png;q=-1", JSON),
        ("image/png;q=", JSON),
        ("image/png;q=1;q=0", JSON),
        ("image/png;q=1.000;x=y", "image/png"),
        ("image/png ; q = 0.5", "image/png"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("image/*, image/png;q=0", "image/jpeg"),
        ("image/jpeg, image/*;q=0.9", "image/jpeg"),
        ("image/png;q=0.5, image/png", "image/png"),
        ("application/json;q=0, */*;q=0.1", "application/x-npz"),
        ("*/*;q=0", JSON),
        ("text/html", JSON),
        (";;;,,,", JSON),
    ],
)
def test_the_answer_is_json_unless_the_client_prefers_another_offered_type(accept, expected):
    assert preferred(accept, OFFERED) == expected


def test_a_header_that_no_client_needs_means_json():
    assert preferred("image/png," + "a/b," * 240, OFFERED) == "image/png"
    assert preferred("image/png," + "a/b," * 250, OFFERED) == JSON


def test_a_media_type_that_the_route_does_not_offer_is_ignored():
    assert preferred("image/png, application/x-npz;q=0.1", (JSON, "application/x-npz")) == "application/x-npz"
    assert preferred("image/png", (JSON,)) == JSON


def test_a_file_with_further_pages_is_not_called_damaged():
    (warning,) = answers.image_warnings(("further_pages",))
    assert warning["detail"] == (
        "The image is one of several: the file has several pages, images or frames, and only the first one is used. "
        "Send each of the others as an image of its own."
    )
