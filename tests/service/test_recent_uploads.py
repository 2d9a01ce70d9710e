import pytest

from service.recent_uploads import RecentUploads, UnknownImageError


def test_the_least_recently_used_upload_is_dropped_to_make_room():
    recent = RecentUploads(10)
    recent.add("a", b"1234")
    recent.add("b", b"5678")
    assert recent.get("a") == b"1234"  # so b is now the least recently used
    recent.add("c", b"9999")  # 4 + 4 + 4 > 10
    assert (recent.get("a"), recent.get("c"), recent.size) == (b"1234", b"9999", 8)
    with pytest.raises(UnknownImageError):
        recent.get("b")


def test_an_upload_that_is_larger_than_the_limit_is_not_kept():
    recent = RecentUploads(10)
    recent.add("a", b"1234")
    recent.add("b", b"12345678901")
    assert recent.size == 4
    with pytest.raises(UnknownImageError):
        recent.get("b")


def test_an_upload_that_is_sent_twice_counts_once():
    recent = RecentUploads(10)
    for _ in range(2):
        recent.add("a", b"1234")
    assert recent.size == 4


def test_a_limit_of_zero_keeps_nothing():
    recent = RecentUploads(0)
    recent.add("a", b"1")
    assert recent.size == 0
