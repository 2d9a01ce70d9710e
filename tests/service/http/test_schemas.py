import pytest
from pydantic import ValidationError

from service.http.schemas import DetectQuery


@pytest.mark.parametrize(
    "query",
    [
        {"score_threshold": "nan"}, {"max_detections": 0}, {"unknown": 1}, {"version": -1},
        {"timeout": 0}, {"timeout": "inf"}, {"timeout": -1}, {"priority": "urgent"},
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused(query):
    with pytest.raises(ValidationError):
        DetectQuery.model_validate(query)
