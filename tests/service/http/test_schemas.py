import io

import numpy as np
import orjson
import pytest

from service.engine.engine import Result
from service.engine.model import Card
from service.http import schemas
from service.http.schemas import DetectAnswer, DetectQuery, ProposalsAnswer, ProposalsQuery, Seen
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
SEEN = Seen("f" * 64, 640, 480, {"read": 0.001, "decode": 0.002, "queue": 0, "inference": 0.01, "total": 0.013})
RESULT = Result(
    boxes=np.array([[0, 0, 10, 10], [1, 1, 2, 2], [2, 2, 3.00049, 3.12345]], np.float32),
    scores=np.array([0.9, 0.6, 0.3], np.float32),
    labels=np.array([1, 0, 1]),
    proposals=np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32),
    objectness=np.array([1, 0.123456789], np.float32),
)


def detect(**query: object) -> dict:
    answer, labels = schemas.detections(SEEN, CARD, RESULT, DetectQuery.model_validate(query))
    document = orjson.loads(schemas.to_json(answer))
    DetectAnswer.model_validate(document)  # the documentation tells the truth
    assert document["labels"] == labels
    return document


def test_the_models_threshold_holds_unless_the_request_has_one():
    assert detect()["scores"] == [0.9, 0.6]
    assert detect(score_threshold=0)["scores"] == [0.9, 0.6, 0.3]
    assert detect(score_threshold=1)["scores"] == []
    assert detect(score_threshold=1)["boxes"] == []


def test_the_best_are_kept():
    assert detect(max_detections=1)["labels"] == ["dog"]


def test_labels_are_filtered_before_the_best_are_chosen():
    assert detect(label=["cat"], max_detections=1)["labels"] == ["cat"]
    assert detect(label=["cat", "dog"], score_threshold=0)["labels"] == ["dog", "cat", "dog"]
    assert detect(label=["cow"])["labels"] == []


def test_proposals_come_only_when_asked_for_and_are_those_of_the_proposals_route():
    assert "proposals" not in detect()
    with_proposals = detect(proposals=True, max_proposals=1)["proposals"]
    alone = schemas.proposals(SEEN, CARD, RESULT, ProposalsQuery(max_proposals=1))
    document = orjson.loads(schemas.to_json(alone))
    ProposalsAnswer.model_validate(document)
    assert with_proposals == {"boxes": document["boxes"], "scores": document["scores"]}
    assert document["boxes"] == [[0, 0, 1, 1]]


def test_numbers_are_rounded_once():
    assert detect(score_threshold=0)["boxes"][2] == [2, 2, 3.0, 3.123]
    everything = schemas.proposals(SEEN, CARD, RESULT, ProposalsQuery())
    assert orjson.loads(schemas.to_json(everything))["scores"] == [1, 0.123457]


def test_the_answer_names_its_image_model_and_time():
    document = detect()
    assert document["image"] == {"id": "f" * 64, "width": 640, "height": 480}
    assert document["model"] == {"name": "m", "version": 3}
    assert document["timing"] == {
        "read_ms": 1, "decode_ms": 2, "queue_ms": 0, "inference_ms": 10, "total_ms": 13,
    }  # fmt: skip


def test_the_answer_for_numpy_says_what_the_json_says():
    answer, _ = schemas.detections(SEEN, CARD, RESULT, DetectQuery(proposals=True))
    with np.load(io.BytesIO(schemas.to_npz(answer, CARD)), allow_pickle=False) as file:
        members = dict(file)
    json = orjson.loads(schemas.to_json(answer))
    assert set(members) == {
        "image_id", "image_width", "image_height", "model_name", "model_version",
        "boxes", "scores", "labels", "label_indices", "proposals_boxes", "proposals_scores",
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


def test_nothing_found_is_an_answer_for_numpy_too():
    answer, _ = schemas.detections(SEEN, CARD, RESULT, DetectQuery(score_threshold=1))
    members = np.load(io.BytesIO(schemas.to_npz(answer, CARD)), allow_pickle=False)
    assert [members[name].shape for name in ("boxes", "scores", "labels", "label_indices")] == [
        (0, 4),
        (0,),
        (0,),
        (0,),
    ]


def test_a_query_is_read_anew_or_remembered_with_the_same_result():
    long = b"&".join([b"label=cat"] * 100)
    for query in (b"label=cat&label=dog&timeout=1.5&priority=bulk", long):
        assert schemas.from_query(DetectQuery, query) == schemas.from_query(DetectQuery, query)
    assert schemas.from_query(DetectQuery, b"label=cat&label=dog").label == ["cat", "dog"]
    assert schemas.from_query(DetectQuery, long).label == ["cat"] * 100
    assert schemas.from_query(ProposalsQuery, b"max_proposals=5") != schemas.from_query(DetectQuery, b"max_proposals=5")


@pytest.mark.parametrize(
    "query",
    [
        {"score_threshold": "nan"}, {"max_detections": 0}, {"unknown": 1}, {"version": -1},
        {"timeout": 0}, {"timeout": "inf"}, {"timeout": -1}, {"priority": "urgent"},
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_errors(query):
    with pytest.raises(ValueError, match="validation error"):
        DetectQuery.model_validate(query)
