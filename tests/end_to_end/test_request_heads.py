"""Paths, methods, versions and expectations, as bytes on a socket: only what is documented is answered."""

import json
import socket

import pytest

from service.app import ROUTERS
from tests.end_to_end.conftest import Server

HANG = 30  # seconds after which a socket's read counts as hanging


def ask(server: Server, head: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of the response to a request that consists of this head."""
    with socket.create_connection(server.address, HANG) as connection:
        connection.sendall(head)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def get(
    server: Server, target: bytes, method: bytes = b"GET", version: bytes = b"1.1", headers: bytes = b"Host: x\r\n"
) -> tuple[int, dict[str, str], bytes]:
    return ask(server, b"%b %b HTTP/%b\r\n%bConnection: close\r\n\r\n" % (method, target, version, headers))


def refused(answer: tuple[int, dict[str, str], bytes], status: int, reason: str) -> dict[str, str]:
    """The headers, after checks that the answer is a problem document."""
    found, headers, body = answer
    document = json.loads(body)
    assert (found, document["status"], document["reason"]) == (status, status, reason)
    assert headers["content-type"] == "application/problem+json"
    assert document["request_id"] == headers["x-request-id"]
    return headers


DOCUMENTED = sorted({route.path for router in ROUTERS for route in router.routes if "GET" in route.methods})


def test_the_documented_paths_are_those_of_the_contract():
    assert DOCUMENTED == [
        "/", "/docs", "/healthz", "/metrics", "/models", "/models/{name}", "/openapi.json", "/proposals", "/readyz",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/metrics", "/models", "/models/shapes", "/openapi.json"])
def test_a_documented_path_is_answered(server, path):
    assert get(server, path.encode())[0] == 200
    assert get(server, b"http://another.example" + path.encode())[0] == 200  # a proxy may send the whole URL
    assert get(server, path.encode() + b"?")[0] == 200  # the query is empty


SUFFIXES = [
    b"%0a", b"%0A", b"%0d%0a", b"%00", b"%20", b"%09", b"%0b", b"%85", b"%c2%85", b"%e2%80%a8", b"%2f", b"%2F", b"/",
    b"//", b"/.", b"/..", b"/%2e", b"%2e", b".", b".json", b";", b";a=b", b"%3b", b"%3f", b"%23", b"#", b"#a", b"%",
    b"%2", b"%zz", b"%ff", b"%c0%af", b"%c0%80", b"%e0%80%80", b"%ef%bb%bf", b"\\", b"%5c", b"*", b"~", b"%25",
]  # fmt: skip


@pytest.mark.parametrize("path", [b"/models/", b"/models/shapes/"])
@pytest.mark.contract("3.9")
def test_a_slash_at_the_end_of_a_path_of_the_api_does_not_matter(server, path):
    assert get(server, path)[2] == get(server, path[:-1])[2]
    assert get(server, path)[0] == 200
    assert get(server, path, b"HEAD")[0] == 200
    assert refused(get(server, path, b"PUT"), 405, "method")["allow"] == "get, head"


def test_an_image_may_be_sent_to_a_path_with_a_slash_at_its_end(server):
    for path in (b"/detect/", b"/proposals/?max_proposals=3"):
        refused(get(server, path, b"POST"), 400, "empty")


@pytest.mark.parametrize("path", [b"/metrics", b"/healthz", b"/docs", b"/models"])
def test_a_path_with_anything_behind_it_is_unknown(server, path):
    for suffix in SUFFIXES if path != b"/models" else [each for each in SUFFIXES if each != b"/"]:
        refused(get(server, path + suffix), 404, "unknown_path")


@pytest.mark.parametrize(
    "target",
    [
        b"//metrics", b"///metrics", b"/./metrics", b"/x/../metrics", b"/%2e/metrics", b"/%2fmetrics", b"%2fmetrics",
        b"/METRICS", b"/Metrics", b"/%6detrics", b"/%6Detrics", b"/metric%73", b"/%256detrics", b"/\\metrics",
        b"/;/metrics", b"/metrics%0a?x=1", b"metrics", b"*", b"x:443", b"//x/metrics", b"http:/metrics",
        b"http:///metrics",
        b"ftp://x/metrics", b"http://x/metrics%0a", b"http://x//metrics", b"http://x/metrics/", b"/%ef%bc%8fmetrics",
        b"/%c0%afmetrics", b"/%e2%84%b3etrics", b"/metrics%E2%80%8B", b"/models//", b"/models//shapes",
        b"/models/shapes/1", b"/detect//", b"/models/shapes//", b"/detect%2f", b"/healthz/", b"/docs/",
        b"/docs/oauth2-redirect", b"/redoc", b"/favicon.ico", b"/.git/config", b"/openapi.yaml",
    ],
)  # fmt: skip
@pytest.mark.contract("3.9")
def test_another_spelling_of_a_path_is_unknown(server, target):
    refused(get(server, target), 404, "unknown_path")


@pytest.mark.parametrize(
    "name",
    [
        b"shapes%0a", b"%0ashapes", b"shapes%00", b"%73hapes", b"shape%73", b".", b"..", b"sh%2Fapes", b"..%2fshapes",
        b"shapes%2f",
        b"%2e%2e", b"%ff", b"%c0%ae", b"shapes%ff", b"%", b"%2", b"shapes%c2%85", b"%7f",
        b"shapes%0d%0aX:y", b'"', b"<a>",
    ],
)  # fmt: skip
def test_a_model_name_in_another_spelling_is_not_a_path(server, name):
    refused(get(server, b"/models/" + name), 404, "unknown_path")


@pytest.mark.parametrize("name", [b"Shapes", b"shapes%20", b"shapes;v=1", b"shapes.", b"%c3%a9", b"...", b"a" * 3000])
def test_a_well_formed_name_of_no_model_is_an_unknown_model(server, name):
    refused(get(server, b"/models/" + name), 404, "unknown_model")


@pytest.mark.parametrize("path", [b"/metrics/", b"/models/shapes//", b"//healthz", b"/nothing"])
@pytest.mark.parametrize("host", [b"evil.example", b"x:99999", b""])
def test_no_answer_redirects_or_repeats_the_host(server, path, host):
    status, headers, body = get(server, path, headers=b"Host: %b\r\nX-Forwarded-Host: evil.example\r\n" % host)
    assert status == 404
    assert "location" not in headers
    assert b"evil" not in body


@pytest.mark.parametrize("path", [b"/", b"/docs", b"/models", b"/openapi.json", b"/readyz"])
def test_a_forged_host_does_not_change_an_answer(server, path):
    plain = get(server, path)[2]
    forged = (
        b"Host: evil.example\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Prefix: /evil\r\nForwarded: host=evil\r\n"
    )
    assert get(server, path, headers=forged)[2] == plain
    assert get(server, b"http://evil.example" + path)[2] == plain


ALLOWED = {
    b"/detect": "POST",
    b"/proposals": "GET, HEAD, POST",
    b"/metrics": "GET, HEAD",
    b"/models/shapes": "GET, HEAD",
}


@pytest.mark.parametrize("path", ALLOWED)
@pytest.mark.parametrize(
    "method", [b"OPTIONS", b"PUT", b"PATCH", b"DELETE", b"TRACE", b"CONNECT", b"get", b"Post", b"BREW"]
)
@pytest.mark.contract("3.9")
def test_405_lists_every_method_of_the_path(server, path, method):
    assert refused(get(server, path, method), 405, "method")["allow"].upper() == ALLOWED[path]


def test_405_answers_head_too_without_a_body(server):
    status, headers, body = get(server, b"/detect", b"HEAD")
    assert (status, headers["allow"], body) == (405, "post", b"")


def test_head_is_answered_like_get(server):
    for path in (b"/healthz", b"/models", b"/"):
        full, (status, headers, body) = get(server, path), get(server, path, b"HEAD")
        assert (status, body, headers["content-length"]) == (200, b"", str(len(full[2])))


@pytest.mark.parametrize("version", [b"9.9", b"0.9", b"1.2", b"2.0", b"3.0", b"0.0"])
@pytest.mark.contract("3.9")
def test_another_version_of_http_is_refused(server, version):
    counted = server.metric("detector_rejected_total", reason="http_version")
    headers = refused(get(server, b"/healthz", version=version), 505, "http_version")
    assert headers["connection"] == "close"
    assert server.metric("detector_rejected_total", reason="http_version") == counted + 1


def test_the_preface_of_http2_is_refused_once_and_the_connection_closed(server):
    status, _, body = ask(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    assert status == 505
    assert body.count(b"http_version") == 1


def test_http_1_0_is_answered_without_a_host_and_whatever_it_expects(server):
    assert get(server, b"/healthz", version=b"1.0", headers=b"Expect: a miracle\r\n")[0] == 200


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"a@b", b"a:b", b"a, b", b"[::1", b"%zz", b"<script>", b"\xe9"])
@pytest.mark.contract("3.9")
def test_a_host_that_cannot_be_one_is_refused(server, host):
    headers = refused(get(server, b"/healthz", headers=b"Host: %b\r\n" % host), 400, "bad_host")
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    "host", [b"", b"a", b"a.b-c_d:8000", b"a:", b"127.0.0.1:1", b"[::1]:8000", b"b%C3%BCcher.example"]
)
def test_a_host_in_any_valid_form_is_answered(server, host):
    assert get(server, b"/healthz", headers=b"Host: %b\r\n" % host)[0] == 200


@pytest.mark.parametrize("expectation", [b"200-ok", b"100-continue, x", b"100-continue;a", b""])
def test_another_expectation_than_100_continue_gets_417(server, expectation):
    head = b"Host: x\r\nExpect: %b\r\n" % expectation
    refused(get(server, b"/healthz", headers=head), 417, "expectation")


def test_100_continue_is_met_in_any_case(server):
    with socket.create_connection(server.address, HANG) as connection:
        head = b"POST /detect HTTP/1.1\r\nHost: x\r\nExpect: 100-CONTINUE\r\nContent-Length: 5\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize("path", [b"/", b"/docs"])
def test_no_other_site_can_show_a_page_in_a_frame_or_change_its_addresses(server, path):
    policy = get(server, path)[1]["content-security-policy"]
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(
        policy.split("; ")
    )


def test_what_follows_a_refused_chunk_is_discarded(server):
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    lines = len(server.lines)
    with socket.create_connection(server.address, HANG) as connection:
        connection.sendall(head + b"zz\r\n")
        answer = b""
        while data := connection.recv(65536):  # until the service ends its side
            answer += data
        connection.sendall(b"\x00\r\n\r\n")  # would be refused if it were read as a head
        assert server.http.get("/healthz").status_code == 200
    assert answer.count(b"HTTP/1.1 400") == 1
    server.wait_for("detector_requests_in_flight", 0)
    assert not [line for line in server.lines[lines:] if "Traceback" in line]
