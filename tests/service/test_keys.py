"""The file of keys, changes to it while the service runs, and the limits of a key."""

import contextlib
import hashlib
import logging
import math
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import keys
from service.keys import Key, KeyLimitError, Keys, KeysFileError, Limits, parse

ALICE, BOB = "frcnn_" + "a" * 43, "frcnn_" + "b" * 43  # the same in every process that collects the tests


def line(name, key, *limits):
    return " ".join([name, keys.digest_of(key), *limits]) + "\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.txt"


def test_a_new_key_has_256_random_bits():
    made = {keys.new() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"frcnn_[A-Za-z0-9_-]{43}", key) for key in made)  # 43 × 6 bits > 256


@pytest.mark.contract("7.3")
def test_the_file_holds_names_digests_limits_and_comments():
    lines = ["\ufeff# the clients", "", line("alice", ALICE, "in-flight=4", "per-second=0.5")[:-1]]
    text = "\r\n".join([*lines, f"  bob\t{keys.digest_of(BOB)} # b"])
    alice, bob = parse(text.encode())
    assert alice == ("alice", hashlib.sha256(ALICE.encode()).digest(), Limits(4, 0.5))
    assert bob == ("bob", hashlib.sha256(BOB.encode()).digest(), Limits(None, None))


@pytest.mark.contract("7.3")
@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (f"bob {BOB}", "line 2: write NAME sha256:DIGEST"),
        (BOB, "line 2: a name has"),
        (f"{BOB} {keys.digest_of(BOB)}", "line 2: a name has"),
        ("bob", "line 2: write NAME sha256:DIGEST"),
        ("bob sha256:abc", "line 2: write NAME sha256:DIGEST"),
        ("bob md5:" + "0" * 64, "line 2: write NAME sha256:DIGEST"),
        ("b/b " + keys.digest_of(BOB), "line 2: a name has"),
        ("b" * 65 + " " + keys.digest_of(BOB), "line 2: a name has"),
        (line("bob", BOB, "in-flight=0"), "line 2: in-flight must be a whole number of at least 1"),
        (line("bob", BOB, "in-flight=1.5"), "line 2: in-flight must be"),
        (line("bob", BOB, "per-second=0"), "line 2: per-second must be a number greater than 0"),
        (line("bob", BOB, "per-second=nan"), "line 2: per-second must be"),
        (line("bob", BOB, "per-second=1e400"), "line 2: per-second must be"),
        (line("bob", BOB, "in-flight=1", "in-flight=2"), "line 2: in-flight is given twice"),
        (line("bob", BOB, "burst=4"), "line 2: write NAME sha256:DIGEST"),
        (line("alice", BOB), "line 2: the same name is on line 1; remove one of them"),
        (line("bob", ALICE), "line 2: the same key is on line 1; remove one of them"),
    ],
)
def test_a_fault_names_its_line_and_repeats_no_secret(second, fault):
    with pytest.raises(KeysFileError) as caught:
        parse((line("alice", ALICE) + second).encode())
    assert str(caught.value).startswith(fault)
    assert BOB not in str(caught.value)


def test_bytes_that_are_not_text_and_too_many_keys_are_faults():
    with pytest.raises(KeysFileError, match="not UTF-8"):
        parse(b"\xff\xfe")
    many = "".join(line(f"k{number}", str(number)) for number in range(keys.MOST_KEYS + 1))
    with pytest.raises(KeysFileError, match="1001 keys; at most 1000"):
        parse(many.encode())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(KeysFileError):
        assert isinstance(parse(data), list)


def test_a_file_that_cannot_be_read_is_a_fault(file, tmp_path):
    for path, fault in ((file, "there is no such file"), (tmp_path, "this is not a file")):
        with pytest.raises(KeysFileError, match=fault):
            Keys(path)
    os.mkfifo(file)
    with pytest.raises(KeysFileError, match="this is not a file"):  # and it does not wait for a writer
        Keys(file)
    file.unlink()
    file.write_bytes(b"#" * (keys.LONGEST_FILE + 1))
    with pytest.raises(KeysFileError, match="larger than"):
        Keys(file)


def test_a_key_is_found_by_its_text(file):
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    known = Keys(file)
    assert known.find(ALICE.encode()).name == "alice"
    assert known.find(BOB.encode()).name == "bob"
    for other in (b"", ALICE.encode()[:-1], ALICE.encode() + b" ", keys.digest_of(ALICE).encode(), b"\xff"):
        assert known.find(other) is None


@pytest.mark.contract("7.3")
def test_an_empty_file_lets_nobody_in_and_says_so(file, caplog):
    file.write_text("# none yet\n")
    assert Keys(file).find(b"") is None
    assert "has no keys: every request gets 401" in caplog.text


@pytest.mark.contract("7.3")
def test_a_changed_file_takes_effect(file):
    file.write_text(line("alice", ALICE))
    known = Keys(file)
    assert known.refresh() == set()
    file.write_text(line("bob", BOB))
    assert known.refresh() == {"alice"}
    assert known.find(ALICE.encode()) is None
    assert known.find(BOB.encode()).name == "bob"


def test_a_change_that_leaves_size_and_time_as_they_were_takes_effect(file):
    file.write_text(line("key", ALICE))
    known = Keys(file)
    before = file.stat()
    file.write_text(line("key", BOB))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    known.refresh()
    assert known.find(ALICE.encode()) is None
    assert known.find(BOB.encode())


@pytest.mark.contract("7.3")
def test_a_faulty_or_missing_file_keeps_the_previous_keys_and_is_reported_once(file, caplog):
    file.write_text(line("alice", ALICE))
    known = Keys(file)
    for change, fault in (
        (lambda: file.write_text(line("alice", ALICE) + "bob\n"), "line 2: write NAME"),
        (file.unlink, "there is no such file"),
    ):
        change()
        caplog.clear()
        for _ in range(3):
            assert known.refresh() == set()
        (said,) = [record.getMessage() for record in caplog.records]
        assert fault in said
        assert said.endswith("the previous keys stay valid")
        assert known.find(ALICE.encode())
    caplog.clear()
    caplog.set_level(logging.INFO)
    file.write_text(line("alice", ALICE))  # as it was in the beginning
    known.refresh()
    assert "number of valid keys: 1" in caplog.text


def test_a_key_keeps_its_requests_in_flight_when_its_line_changes(file):
    file.write_text(line("alice", ALICE, "in-flight=1"))
    known = Keys(file)
    key = known.find(ALICE.encode())
    key.enter(0)
    file.write_text(line("alice", BOB, "in-flight=2"))
    known.refresh()
    assert known.find(BOB.encode()) is key
    key.enter(0)
    with pytest.raises(KeyLimitError):
        key.enter(0)


@pytest.mark.contract("7.4")
def test_requests_in_flight_are_limited_until_they_leave():
    key = Key("alice", Limits(in_flight=2))
    key.enter(0)
    key.enter(0)
    with pytest.raises(KeyLimitError) as caught:
        key.enter(0)
    assert (caught.value.limit, caught.value.retry_after) == ("2 requests in flight", 1)
    key.leave()
    key.enter(0)


@pytest.mark.contract("7.4")
def test_the_rate_allows_one_second_of_requests_at_once_and_then_one_for_each_interval():
    key = Key("alice", Limits(per_second=2))
    for now in (100, 100, 100.5, 101):  # two at once, then one every half second
        key.enter(now)
    with pytest.raises(KeyLimitError) as caught:
        key.enter(101.25)  # half a request has been earned since
    assert (caught.value.limit, caught.value.retry_after) == ("2 requests per second", 1)


@pytest.mark.parametrize(("rate", "seconds"), [(0.1, 10), (0.3, 4), (1, 1), (50, 1)])
def test_after_the_stated_time_a_request_is_admitted_again(rate, seconds):
    key, now = Key("alice", Limits(per_second=rate)), 7.0
    for _ in range(math.ceil(rate)):  # as many as one second allows
        key.enter(now)
    with pytest.raises(KeyLimitError) as caught:
        key.enter(now)
    assert caught.value.retry_after == seconds  # ceil(1 / rate)
    key.enter(now + seconds)


def test_a_refused_request_costs_nothing():
    key = Key("alice", Limits(in_flight=1, per_second=2))
    key.enter(0)
    for _ in range(10):
        with pytest.raises(KeyLimitError, match="in flight"):
            key.enter(0)
    key.leave()
    key.enter(0)  # the second of the two that one second allows


@settings(deadline=None)
@given(st.floats(0.01, 1000), st.lists(st.floats(0, 5), max_size=200))
def test_over_any_time_the_rate_is_kept(rate, pauses):
    key, now, admitted = Key("alice", Limits(per_second=rate)), 0.0, 0
    for pause in pauses:
        now += pause
        with contextlib.suppress(KeyLimitError):
            key.enter(now)
            admitted += 1
    assert admitted <= max(1, rate) + now * rate + 1e-6
