"""Which requests may enter: keys, paths and ports."""

import pytest

from service import keys
from service.app import create_app
from service.http.gate import Gate, Refused, owner
from service.settings import Settings

ALICE, BOB = keys.new().encode(), keys.new().encode()

PROTECTED = [
    "/", "/docs", "/openapi.json", "/metrics", "/models", "/models/x", "/detect", "/proposals", "/unknown", "", "*",
    "//healthz", "/healthz/", "/healthz\n", "/healthz ", "/healthz\0", "/HEALTHZ", "/./healthz", "/x/../healthz",
    "/healthz;a", "/healthz/../detect", "//detect", "healthz", "http://x/healthz", "/healthz/detect", "/readyz/",
    "/readyz\r",
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(
        f"alice {keys.digest_of(ALICE.decode())} in-flight=1\nbob {keys.digest_of(BOB.decode())} per-second=0.1\n"
    )
    return file


@pytest.fixture
def gate(file):
    def gate(now=0.0, metrics_port=None, **settings):
        settings = {"api_keys_file": file} | settings
        runtime = create_app(Settings(**settings)).state.runtime
        runtime.metrics_port = metrics_port
        return Gate(runtime, lambda: now)

    return gate


def scope(path, *headers, method="POST", port=8000):
    return {"type": "http", "method": method, "path": path, "headers": headers, "server": ("::", port), "state": {}}


def refusal(gate, *arguments, **more):
    with pytest.raises(Refused) as caught:
        gate.enter(scope(*arguments, **more))
    return caught.value.problem


@pytest.mark.contract("7.2")
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", PROTECTED)
def test_every_path_but_the_probes_needs_a_key(gate, path, method):
    problem = refusal(gate(), path, method=method)
    assert (problem.status, problem.reason) == (401, "unauthorised")
    assert problem.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_the_probes_need_no_key(gate, path):
    assert gate().enter(scope(path)) is None


def test_the_path_counts_and_not_the_host_header(gate):
    assert refusal(gate(), "/detect", (b"host", b"x/healthz?")).status == 401


@pytest.mark.contract("7.2")
def test_page_and_metrics_are_public_only_by_their_settings(gate):
    for path in ("/", "/docs", "/openapi.json"):
        assert gate(public_page=True).enter(scope(path)) is None
        assert refusal(gate(public_metrics=True), path).status == 401
    assert gate(public_metrics=True).enter(scope("/metrics")) is None
    assert refusal(gate(public_page=True), "/metrics").status == 401


def test_without_a_file_of_keys_every_path_is_open(gate):
    assert gate(api_keys_file=None).enter(scope("/detect")) is None


@pytest.mark.contract("7.2")
@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + ALICE)],
        [(b"authorization", b"bEARER  " + ALICE + b" ")],
        [(b"x-api-key", ALICE)],
        [(b"authorization", b"Bearer " + ALICE), (b"x-api-key", ALICE)],
    ],
)
def test_a_key_is_taken_from_either_header(gate, headers):
    assert gate().enter(scope("/detect", *headers)).name == "alice"


@pytest.mark.contract("7.2")
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", ALICE)],
        [(b"authorization", b"Basic " + ALICE)],
        [(b"authorization", b"Basic eA=="), (b"x-api-key", ALICE)],
        [(b"authorization", b"Bearer " + ALICE + b"x")],
        [(b"authorization", b"Bearer " + ALICE + b", Bearer " + ALICE)],
        [(b"authorization", b"Bearer\t" + ALICE)],
        [(b"authorization", b"Bearer " + ALICE)] * 2,
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"\xff\x00")],
        [(b"x-api-key", keys.digest_of(ALICE.decode()).encode())],
        [(b"x-api-key", b"alice")],
        [(b"x-api-key", ALICE)] * 2,
        [(b"x-api-key", ALICE), (b"x-api-key", BOB)],
        [(b"authorization", b"Bearer " + ALICE), (b"x-api-key", BOB)],
        [(b"authorization", b"Bearer " + ALICE), (b"x-api-key", b"")],
        [(b"cookie", b"key=" + ALICE)],
    ],
)
def test_no_key_a_wrong_one_or_several_are_refused_without_repeating_them(gate, headers):
    problem = refusal(gate(), "/detect", *headers)
    assert problem.status == 401
    assert ALICE.decode() not in problem.detail


@pytest.mark.contract("7.4")
def test_a_key_over_its_limit_gets_429_with_the_time_to_wait(gate):
    entered = gate()
    key = entered.enter(scope("/detect", (b"x-api-key", ALICE)))
    problem = refusal(entered, "/models", (b"x-api-key", ALICE))
    assert (problem.status, problem.reason, problem.headers) == (429, "key_limit", {"Retry-After": "1"})
    key.leave()
    assert entered.enter(scope("/detect", (b"x-api-key", ALICE))) is key
    entered.enter(scope("/detect", (b"x-api-key", BOB)))
    assert refusal(entered, "/detect", (b"x-api-key", BOB)).headers == {"Retry-After": "10"}  # 1 / 0.1 s


@pytest.mark.contract("7.5")
def test_the_metrics_leave_the_main_port_for_one_of_their_own(gate):
    both = gate(public_metrics=True, public_page=True, metrics_port=9000)
    assert both.enter(scope("/metrics", port=9000)) is None
    for path in [*PROTECTED, "/healthz"]:
        if path != "/metrics":
            assert refusal(both, path, (b"x-api-key", ALICE), port=9000).status == 404
    assert refusal(both, "/metrics", (b"x-api-key", ALICE)).status == 404
    assert refusal(gate(metrics_port=9000), "/metrics").status == 401  # without a key nothing is said about paths
    assert both.enter(scope("/healthz")) is None


def test_the_owner_is_the_key_or_else_the_address():
    named = scope("/detect") | {"client": ("127.0.0.1", 5), "state": {"key": "127.0.0.1"}}
    assert owner(named) == "key 127.0.0.1"
    assert owner(named | {"state": {"key": None}}) == "address 127.0.0.1"  # a key with such a name is another owner
    assert owner(named | {"state": {}, "client": None}) == "address "
