"""Recent uploads: how much memory they take, and to whom they belong."""

import pytest

from service.recent_uploads import MOST_OWNERS, OWNER_OVERHEAD, UPLOAD_OVERHEAD, RecentUploads, UnknownImageError

ONE = 4 + UPLOAD_OVERHEAD + OWNER_OVERHEAD  # memory for an upload of four bytes with one owner


def test_the_least_recently_used_upload_is_dropped_to_make_room():
    recent = RecentUploads(2 * ONE)
    recent.add("a", b"1234", "alice")
    recent.add("b", b"5678", "alice")
    assert recent.get("a", "alice") == b"1234"  # so b is now the least recently used
    recent.add("c", b"9999", "alice")  # three times ONE do not fit
    assert (recent.get("a", "alice"), recent.get("c", "alice"), recent.size) == (b"1234", b"9999", 2 * ONE)
    with pytest.raises(UnknownImageError):
        recent.get("b", "alice")


def test_an_upload_that_is_larger_than_the_limit_is_not_kept():
    recent = RecentUploads(ONE)
    recent.add("a", b"1234", "alice")
    recent.add("b", b"12345", "alice")
    assert recent.size == ONE
    with pytest.raises(UnknownImageError):
        recent.get("b", "alice")


def test_an_upload_that_is_sent_twice_counts_once():
    recent = RecentUploads(2 * ONE)
    for _ in range(2):
        recent.add("a", b"1234", "alice")
    assert recent.size == ONE


def test_a_limit_of_zero_keeps_nothing():
    recent = RecentUploads(0)
    recent.add("a", b"1", "alice")
    assert recent.size == 0


def test_an_upload_of_several_owners_is_stored_once_and_belongs_to_each_of_them():
    recent = RecentUploads(2 * ONE)
    recent.add("a", b"1234", "alice")
    with pytest.raises(UnknownImageError):
        recent.get("a", "bob")
    recent.add("a", b"1234", "bob")
    assert recent.get("a", "alice") is recent.get("a", "bob")
    assert recent.size == ONE + OWNER_OVERHEAD


def test_tiny_uploads_do_not_take_more_memory_than_the_limit():
    recent = RecentUploads(10 * ONE)
    for number in range(1000):
        recent.add(str(number), b"1234", "alice")
    assert recent.size == 10 * ONE


def test_a_further_owner_takes_the_place_of_the_first_if_there_are_too_many():
    recent = RecentUploads(2**30)
    for number in range(MOST_OWNERS + 1):
        recent.add("a", b"1234", str(number))
    assert recent.size == ONE + (MOST_OWNERS - 1) * OWNER_OVERHEAD
    assert recent.get("a", "1") == recent.get("a", str(MOST_OWNERS)) == b"1234"
    with pytest.raises(UnknownImageError):
        recent.get("a", "0")


def test_an_owner_does_not_make_an_upload_outgrow_the_limit():
    recent = RecentUploads(ONE)
    recent.add("a", b"1234", "alice")
    recent.add("a", b"1234", "bob")
    assert recent.size <= ONE
