from types import SimpleNamespace

import pytest

from service.models.choice import NoDefaultModelError, UnknownModelError, choose, default_model

OLD, NEW, OTHER = (SimpleNamespace() for _ in range(3))
SERVED = {"shapes": {1: OLD, 10: NEW}, "cars": {2: OTHER}}


@pytest.mark.parametrize(
    ("served", "configured", "preferred", "expected"),
    [
        (SERVED, "cars", "shapes", "cars"),
        (SERVED, None, "shapes", "shapes"),
        (SERVED, None, None, None),
        (SERVED, None, "gone", None),
        (SERVED, "gone", "shapes", None),  # a configured model is never silently replaced
        ({"cars": {}}, None, None, "cars"),
        ({"cars": {}}, None, "gone", "cars"),
        ({"cars": {}}, "gone", None, None),
        ({}, None, None, None),
    ],
)
def test_the_default_is_the_configured_model_or_the_only_one_or_the_stores(served, configured, preferred, expected):
    assert default_model(served, configured, preferred) == expected


def test_the_highest_version_answers_unless_the_request_names_one():
    assert choose(SERVED, None, "shapes", None) is NEW  # compared as numbers, 10 > 1
    assert choose(SERVED, None, "shapes", 1) is OLD
    assert choose(SERVED, "cars", None, None) is OTHER


def test_errors_list_what_is_available():
    with pytest.raises(NoDefaultModelError, match=r"choose one with \?model=\. Available: shapes, cars\."):
        choose(SERVED, None, None, None)
    with pytest.raises(UnknownModelError, match=r"Unknown model\. Available: shapes, cars\."):
        choose(SERVED, "shapes", "unicorn", None)
    with pytest.raises(UnknownModelError, match=r"Unknown version of model shapes\. Available: 1, 10\."):
        choose(SERVED, None, "shapes", 2)
