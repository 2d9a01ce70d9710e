"""Targets in absolute form. test_connections.py tests the other rules on real connections."""

import pytest

from service.http.http1 import in_origin_form


def scope(target: bytes) -> dict:
    """The scope that uvicorn creates for a target."""
    raw_path, _, query = target.partition(b"?")
    headers = [(b"host", b"first"), (b"accept", b"*/*")]
    return {"path": raw_path.decode(), "raw_path": raw_path, "query_string": query, "headers": headers}


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://x/detect", b"x", "/detect", b""),
        (b"HTTPS://user@x:80/detect?a=http://b/c", b"x:80", "/detect", b"a=http://b/c"),
        (b"http://[::1]:8000/a%20b", b"[::1]:8000", "/a b", b""),
        (b"http://x", b"x", "/", b""),
        (b"http://x?a", b"x", "/", b"a"),
    ],
)
def test_an_absolute_target_sets_the_path_and_the_host(target, host, path, query):
    changed = in_origin_form(scope(target))
    assert (changed["path"], changed["query_string"]) == (path, query)
    assert changed["headers"] == [(b"host", host), (b"accept", b"*/*")]


@pytest.mark.parametrize(
    "target", [b"/", b"/http://x/detect", b"//x/detect", b"*", b"ftp://x/detect", b"http:///detect"]
)
def test_any_other_target_is_unchanged(target):
    assert in_origin_form(scope(target)) == scope(target)
