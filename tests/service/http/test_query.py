"""Every spelling of a parameter has one meaning, or gets a problem that names the parameter in our own words."""

import re
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.problems import Problem
from service.http.query import MAX_PARAMETERS, parse
from service.http.schemas import DetectQuery, NoQuery, ProposalsQuery, RecentQuery


def faults(query: str | bytes, kind: type = DetectQuery) -> dict[str, str]:
    """The faults of a query by parameter."""
    with pytest.raises(Problem) as caught:
        parse(kind, query if isinstance(query, bytes) else query.encode())
    assert (caught.value.status, caught.value.reason) == (422, "parameter")
    found = {each["parameter"]: each["detail"] for each in caught.value.more["errors"]}
    assert all(name in caught.value.detail for name in found)
    return found


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        ("score_threshold=0", "score_threshold", 0.0),
        ("score_threshold=1", "score_threshold", 1.0),
        ("score_threshold=0.5", "score_threshold", 0.5),
        ("score_threshold=.5", "score_threshold", 0.5),
        ("score_threshold=5e-1", "score_threshold", 0.5),
        ("score_threshold=0.05E%2B1", "score_threshold", 0.5),
        ("score_threshold=%30%2e5", "score_threshold", 0.5),
        ("%73core_threshold=0.5", "score_threshold", 0.5),
        ("timeout=1e1", "timeout", 10.0),
        ("max_detections=9223372036854775807", "max_detections", 2**63 - 1),
        ("version=0", "version", 0),
        ("proposals=true", "proposals", True),
        ("proposals=True", "proposals", True),
        ("proposals=1", "proposals", True),
        ("proposals=FALSE", "proposals", False),
        ("proposals=0", "proposals", False),
        ("model=a+b%20c%2Bd", "model", "a b c+d"),
        ("model=%c3%a9", "model", "é"),
        ("model=a;b", "model", "a;b"),
        ("model=a=b", "model", "a=b"),
        ("label=a&label=b&label=a", "label", ["a", "b", "a"]),
        ("priority=bulk", "priority", "bulk"),
        ("&&priority=bulk&", "priority", "bulk"),
    ],
)
@pytest.mark.contract("3.2")
def test_these_spellings_mean_this(query, name, value):
    found = getattr(parse(DetectQuery, query.encode()), name)
    assert found == value
    assert type(found) is type(value)


NUMBERS = [
    "nan", "inf", "-inf", "Infinity", "1e999", "0x1", "0b1", "1_0", "0_5", "%2B0.5", "+0.5", "0.5+", "%200.5", "0.5%20",
    "1.", "1e", "e1", "0,5", "1/2", "50%25", "½", "１", "٠", "0.5f", "00.5", "-0", "-0.1", "2", "0.5.5", "true", "''",
    "0.5;x=1", "0.5%00", "0.5%0a", "[0.5]", "null", "None", "1e1e1", "1 e1",
]  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS)
def test_a_number_in_another_spelling_is_refused(value):
    assert list(faults(f"score_threshold={quote(value, safe='%+/;')}")) == ["score_threshold"]


@pytest.mark.parametrize(
    "value",
    [
        "1.0",
        "1e1",
        "007",
        "+1",
        "%2B1",
        "-1",
        "0",
        "0x10",
        "1_000",
        "1,000",
        "١",
        "１",
        "%201",
        "1%20",
        "9223372036854775808",
        "9" * 500,
    ],
)
def test_a_whole_number_in_another_spelling_is_refused(value):
    wanted = "must be a whole number in decimal digits, at least 1 and at most 9223372036854775807"
    assert faults(f"max_detections={quote(value, safe='%+')}") == {"max_detections": wanted}


@pytest.mark.parametrize("value", ["yes", "no", "on", "off", "t", "f", "y", "2", "-1", "01", "truе", "true%20", "null"])
def test_a_flag_in_another_spelling_is_refused(value):
    assert faults(f"proposals={quote(value, safe='%')}") == {"proposals": "must be true or false"}


@pytest.mark.parametrize(
    ("query", "name", "words"),
    [
        ("score_threshold=0.5&score_threshold=0.9", "score_threshold", "more than once"),
        ("score_threshold=0.5&score_threshold=0.5", "score_threshold", "more than once"),
        ("score_threshold=x&score_threshold=0.9", "score_threshold", "must be a number"),
        ("model=a&mo%64el=b", "model", "more than once"),
        ("model=a&model=", "model", "more than once"),
        ("model=&model=a", "model", "no value"),
        ("model=", "model", "no value"),
        ("model", "model", "no value"),
        ("label=", "label", "no value"),
        ("label=a&label=", "label", "no value"),
        ("version=", "version", "no value"),
        ("priority=", "priority", "no value"),
        ("=", "", "name is empty"),
        ("=a", "", "name is empty"),
        ("model=a&=b", "", "name is empty"),
        ("Model=a", "Model", "unknown parameter"),
        ("model%00=a", "model%00", "control character"),
        ("model+=a", "model ", "unknown parameter"),
        ("model[]=a", "model[]", "unknown parameter"),
        ("label[]=a", "label[]", "unknown parameter"),
        ("label[0]=a", "label[0]", "unknown parameter"),
        ("model;version=1", "model;version", "unknown parameter"),
        ("model=%", "model", "two hexadecimal digits"),
        ("model=%2", "model", "two hexadecimal digits"),
        ("model=%zz", "model", "two hexadecimal digits"),
        ("model=%u00e9", "model", "two hexadecimal digits"),
        ("m%=a", "m%", "two hexadecimal digits"),
        ("model=%ff", "model", "not UTF-8"),
        ("model=%c0%80", "model", "not UTF-8"),
        ("model=%ed%a0%80", "model", "not UTF-8"),
        ("%ff=a", "%ff", "not UTF-8"),
        ("model=a%00b", "model", "control character"),
        ("model=a%0ab", "model", "control character"),
        ("label=%c2%85", "label", "control character"),
        ("priority=BULK", "priority", "interactive or bulk"),
        ("timeout=0", "timeout", "a number, above 0"),
        ("timeout=1e400", "timeout", "a number, above 0"),
    ],
)
@pytest.mark.contract("3.2")
def test_an_ambiguous_or_empty_or_broken_parameter_is_refused(query, name, words):
    found = faults(query)
    assert list(found) == [name]
    assert words in found[name]


@pytest.mark.parametrize("value", ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "%0a", "0" * 32 + "+" + "0" * 31])
def test_an_image_id_in_another_spelling_is_refused(value):
    assert list(faults(f"image_id={value}", RecentQuery)) == ["image_id"]


def test_a_route_without_parameters_refuses_any():
    assert parse(NoQuery, b"") == parse(NoQuery, b"&") == NoQuery()
    assert faults("version=1", NoQuery) == {"version": "unknown parameter"}


def test_faults_are_listed_in_the_order_of_the_query():
    assert list(faults("z=1&version=x&label=&a=1")) == ["z", "version", "label", "a"]


def test_too_many_parameters_are_refused_before_they_are_read():
    labels = ["label=a"] * MAX_PARAMETERS
    assert len(parse(DetectQuery, "&".join(labels).encode()).label) == MAX_PARAMETERS
    with pytest.raises(Problem, match="more than 1,000 parameters"):
        parse(DetectQuery, "&".join([*labels, "label=a"]).encode())


def test_a_repeated_query_gives_the_same_result_whether_it_is_cached_or_not():
    short = b"label=cat&label=dog&timeout=1.5&priority=bulk"
    long = b"&".join([b"label=cat"] * 100)  # 999 bytes, too long for the cache
    assert parse(DetectQuery, short) is parse(DetectQuery, short)
    assert parse(DetectQuery, long) == parse(DetectQuery, long)
    assert parse(DetectQuery, long).label == ["cat"] * 100


def test_equal_queries_of_different_routes_are_cached_separately():
    for kind in (ProposalsQuery, RecentQuery, DetectQuery):
        assert type(parse(kind, b"max_proposals=5")) is kind


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)


@given(st.floats(0, 1), st.integers(0, 2**63 - 1), TEXT, st.lists(TEXT, max_size=3), st.booleans())
def test_what_any_library_encodes_is_read_back(score, version, model, labels, proposals):
    given = {"score_threshold": score, "version": version, "model": model, "label": labels, "proposals": proposals}
    found = parse(DetectQuery, urlencode(given, doseq=True).encode())
    assert {name: getattr(found, name) for name in given} == given


PIECES = st.sampled_from(
    ["model", "=", "&", "%", "%00", "%ff", ";", "+", "label", "0.5", "é", "score_threshold", "1", "e", "."]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=12))
def test_any_query_is_read_or_refused_in_our_own_words(pieces):
    said = ""
    try:
        parse(DetectQuery, "".join(pieces).encode("utf-8", "replace"))
    except Problem as problem:
        said = f"{problem.status} {problem.detail}"
    assert not said or said.startswith("422 ")
    assert not re.search("Input should|valid (integer|number|boolean)|pydantic", said)
