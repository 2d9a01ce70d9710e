"""The local copy of a model store at a URL, with a real S3 server and with file://."""

import http.server
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import pin, setting_checks
from service.models import mirror, remote
from service.models.mirror import Mirror
from service.models.remote import Remote, RemoteError, contents, copy_folder, parse_url
from service.models.store import directories
from service.settings import Settings
from tests.service import graphs
from tests.service.s3 import KEY, S3


@pytest.fixture(scope="module")
def server():
    running = S3()
    yield running
    if running.running:
        running.stop()


@pytest.fixture
def s3(server, monkeypatch):
    server.use_new_bucket()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def copy(tmp_path) -> Path:
    return tmp_path / "copy"


def publish(s3: S3, tmp_path: Path, version: int = 1, name: str = "shapes", **kind) -> Path:
    folder = graphs.publish(tmp_path / f"published-{time.monotonic_ns()}", name, version, **kind)
    s3.upload(folder, f"{name}/{version}")
    return folder


def places(folder: Path) -> list[str]:
    return [f"{each.parent.name}/{each.name}" for each in directories(folder).versions]


def transfers(s3: S3) -> list[str]:
    """The requests since the last call, without the address and the time."""
    lines = [line.split('"')[1] for line in s3.requests]
    s3.requests.clear()
    return lines


def same_files(folder: Path, other: Path) -> bool:
    return all((other / file.name).read_bytes() == file.read_bytes() for file in folder.iterdir())


@pytest.mark.contract("4.9")
def test_versions_and_choices_come_and_go_as_in_the_bucket(s3, copy, tmp_path):
    first = publish(s3, tmp_path, 1)
    graphs.add_graph(first, (first / "model.onnx").read_bytes())
    s3.upload(first, "shapes/1")
    s3.put("default", b"shapes\n")
    s3.put("README.md", b"not a model")
    mirrored = Mirror(Remote(s3.url), copy, clock=lambda: 0.0)
    assert mirrored.sync() is None
    assert places(copy) == ["shapes/1"]
    assert same_files(first, copy / "shapes" / "1")  # whole folders: model.cuda.onnx too
    assert (copy / "default").read_bytes() == b"shapes\n"

    publish(s3, tmp_path, 2)
    s3.put("shapes/default", b"1")
    assert mirrored.sync() is None
    assert places(copy) == ["shapes/1", "shapes/2"]
    assert (copy / "shapes" / "default").read_bytes() == b"1"

    s3.remove("shapes/2/")
    s3.remove("shapes/default")
    s3.remove("default")
    assert mirrored.sync() is None
    assert places(copy) == ["shapes/1"]
    assert not list(copy.glob("**/default"))
    assert not [each.name for each in copy.iterdir() if each.name.startswith(".")]


@pytest.mark.contract("4.9")
def test_a_poll_takes_one_request_and_transfers_nothing_that_has_not_changed(s3, copy, tmp_path):
    for version in (1, 2, 3):
        publish(s3, tmp_path, version)
    s3.put("shapes/default", b"3")
    mirrored = Mirror(Remote(s3.url), copy, clock=lambda: 0.0)
    assert mirrored.sync() is None
    transfers(s3)
    assert mirrored.sync() is None
    (poll,) = transfers(s3)
    assert "list-type=2" in poll
    s3.put("shapes/2/model.json", (copy / "shapes" / "2" / "model.json").read_bytes() + b"\n")
    transfers(s3)
    mirrored.sync()
    assert len(transfers(s3)) == 1  # files that are being replaced must rest for one poll
    mirrored.sync()
    assert [line.split()[0] for line in transfers(s3) if "shapes/2/model.json" in line]
    assert (copy / "shapes" / "2" / "model.json").read_bytes().endswith(b"\n")
    restarted = Mirror(Remote(s3.url), copy, clock=lambda: 0.0)
    transfers(s3)
    assert restarted.sync() is None
    assert not [line for line in transfers(s3) if "/model." in line]


@pytest.mark.contract("4.9")
def test_a_large_store_costs_a_request_for_each_1000_files(s3, copy, monkeypatch, caplog):
    from moto.backends import get_backend

    monkeypatch.setattr(mirror, "MOST_VERSIONS", 3)
    bucket = get_backend("s3")["123456789012"]["aws"]
    for version in range(1, 2_001):
        bucket.put_object(s3.bucket, f"store/shapes/{version}/model.json", b"{}")
    s3.put("shapes/default", b"17")
    now = 0.0
    mirrored = Mirror(Remote(s3.url), copy, clock=lambda: now)
    transfers(s3)
    assert mirrored.sync() is None
    sent = transfers(s3)
    assert sum("list-type=2" in line for line in sent) == 3  # 2,001 files
    assert len(sent) < 3 + 10
    assert places(copy) == ["shapes/17", "shapes/1999", "shapes/2000"]  # the pinned one, then the newest
    assert "the model store has 2000 versions; 3 are fetched" in caplog.text
    assert mirrored.sync() is None
    assert transfers(s3) == []
    now = 1.3  # 1000 files more than FEW_FILES, 1.3 ms each
    assert mirrored.sync() is None
    assert len(transfers(s3)) == 3
    assert caplog.text.count("2000 versions") == 1


@pytest.mark.contract("4.9")
@pytest.mark.parametrize("there", ["model.json", "model.onnx"])
def test_of_a_half_copied_version_the_folder_shows_what_is_there_until_the_rest_arrives(s3, copy, tmp_path, there):
    folder = graphs.publish(tmp_path / "published", "shapes", 2)
    missing = {"model.json": "model.onnx", "model.onnx": "model.json"}[there]
    s3.put(f"shapes/2/{there}", (folder / there).read_bytes())
    mirrored = Mirror(Remote(s3.url), copy, clock=lambda: 0.0)
    assert mirrored.sync() is None
    assert places(copy) == ["shapes/2"]  # so that the service reports it as arriving
    assert not (copy / "shapes" / "2" / missing).exists()
    s3.put(f"shapes/2/{missing}", (folder / missing).read_bytes())
    mirrored.sync()
    mirrored.sync()
    assert same_files(folder, copy / "shapes" / "2")


@pytest.mark.contract("4.9")
def test_what_was_fetched_stays_while_the_server_is_down(s3, copy, tmp_path):
    publish(s3, tmp_path, 1)
    mirrored = Mirror(Remote(s3.url), copy, clock=lambda: 0.0)
    assert mirrored.sync() is None
    s3.stop()
    fault = mirrored.sync()
    assert fault is not None
    assert fault.startswith("the model store cannot be reached (EndpointConnectionError); check the network")
    assert Mirror(Remote(s3.url), copy).sync() == fault
    assert places(copy) == ["shapes/1"]
    s3.start()
    publish(s3, tmp_path, 2)
    assert mirrored.sync() is None
    assert places(copy) == ["shapes/1", "shapes/2"]


@pytest.mark.contract("4.9")
def test_a_server_that_never_answers_is_given_up_and_a_second_call_does_not_wait_for_it(copy, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in (KEY | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}).items():
            monkeypatch.setenv(name, value)
        mirrored = Mirror(Remote("s3://models", list_seconds=0.2), copy)
        assert mirrored.sync() == "the model store does not answer in time; check the network and the address"
        began = time.monotonic()
        assert mirrored.sync() == "the model store does not answer in time; check the network and the address"
        assert time.monotonic() - began < 20  # the library's own patience, which the first call is still spending


@pytest.mark.contract("4.9")
def test_an_empty_store_leaves_the_copy_as_it_is(copy, tmp_path):
    graphs.publish(tmp_path / "store", "shapes", 1)
    mirrored = Mirror(Remote(f"file://{tmp_path / 'store'}"), copy, clock=lambda: 0.0)
    assert mirrored.sync() is None
    (tmp_path / "store" / "shapes").rename(tmp_path / "elsewhere")
    assert mirrored.sync() == "the model store is empty; publish a model, or correct MODEL_STORE"
    assert places(copy) == ["shapes/1"]
    (tmp_path / "elsewhere").rename(tmp_path / "store" / "shapes")
    shutil.rmtree(tmp_path / "store" / "shapes" / "1")  # the folder of the model stays, as for a folder's last version
    assert mirrored.sync() is None
    assert places(copy) == []


def test_versions_may_be_links_in_a_store_of_files(copy, tmp_path):
    folder = graphs.publish(tmp_path / "published", "shapes", 1)
    (tmp_path / "store" / "shapes").mkdir(parents=True)
    (tmp_path / "store" / "shapes" / "1").symlink_to(folder)
    assert Mirror(Remote(f"file://{tmp_path / 'store'}"), copy).sync() is None
    assert same_files(folder, copy / "shapes" / "1")


@pytest.mark.contract("4.9")
def test_a_copy_that_was_damaged_is_fetched_again_at_the_next_start(s3, copy, tmp_path):
    folder = publish(s3, tmp_path, 1)
    assert Mirror(Remote(s3.url), copy).sync() is None
    graph = copy / "shapes" / "1" / "model.onnx"
    graph.write_bytes(bytes(len(graph.read_bytes())))
    assert Mirror(Remote(s3.url), copy).sync() is None
    assert same_files(folder, copy / "shapes" / "1")


def test_what_a_killed_process_left_behind_is_not_a_model_and_is_removed_after_a_day(s3, copy, tmp_path):
    publish(s3, tmp_path, 1)
    for name, age in ((".fetching-now", 0), (".fetching-old", 90_000)):
        (copy / name).mkdir(parents=True)
        (copy / name / "model.onnx").write_bytes(b"half")
        for file in (copy / name / "model.onnx", copy / name):
            os.utime(file, (time.time() - age,) * 2)
    assert Mirror(Remote(s3.url), copy).sync() is None
    assert places(copy) == ["shapes/1"]
    assert sorted(each.name for each in copy.glob(".*")) == [".fetching-now"]


@pytest.mark.contract("4.9")
def test_without_room_a_version_is_not_fetched_and_the_older_one_stays(s3, copy, tmp_path, monkeypatch):
    publish(s3, tmp_path, 1)
    mirrored = Mirror(Remote(s3.url), copy, clock=lambda: 0.0)
    assert mirrored.sync() is None
    usage = shutil.disk_usage(copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=mirror.FREE_BYTES))
    publish(s3, tmp_path, 2)
    s3.remove("shapes/1/")
    s3.put("shapes/default", b"2")
    fault = mirrored.sync()
    assert fault is not None
    assert fault.startswith("shapes/2 in the model store cannot be fetched: there is no room in MODEL_CACHE; free some")
    assert places(copy) == ["shapes/1"]  # it would leave nothing that answers
    assert not (copy / "shapes" / "default").exists()  # the pinned version is not here yet


def test_the_chosen_version_is_fetched_first_and_the_newest_next(copy, tmp_path):
    for version in (1, 2, 10):
        graphs.publish(tmp_path / "store", "shapes", version)
    (tmp_path / "store" / "shapes" / "default").write_text("1")
    mirrored = Mirror(Remote(f"file://{tmp_path / 'store'}"), copy, clock=lambda: 0.0)
    found = []
    for _ in range(3):
        mirrored.sync(seconds=0)  # no time: one version at a call
        found.append(places(copy))
    assert found == [["shapes/1"], ["shapes/1", "shapes/10"], ["shapes/1", "shapes/10", "shapes/2"]]


@pytest.mark.contract("4.9")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NoSuchBucket", "there is no such bucket or folder"),
        ("AccessDenied", "access to the model store was denied; check the credentials"),
        ("SignatureDoesNotMatch", "access to the model store was denied; check the credentials"),
    ],
)
def test_what_s3_refuses_is_said_in_words_of_our_own(monkeypatch, code, words):
    with RefusingServer(code) as endpoint:
        for name, value in (KEY | {"AWS_ENDPOINT_URL": endpoint}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RemoteError) as caught:
            Remote("s3://models/store").list()
    assert words in str(caught.value)
    assert "secret words" not in str(caught.value)
    assert caught.value.lasting


class RefusingServer:
    """An S3 server that answers every request with the error `code`."""

    def __init__(self, code: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"<Error><Code>{code}</Code><Message>secret words</Message></Error>".encode()
                self.send_response(404 if code == "NoSuchBucket" else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.contract("4.9")
def test_missing_credentials_are_named_with_the_remedy(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RemoteError, match=r"no valid credentials .* set AWS_ACCESS_KEY_ID") as caught:
        Remote(s3.url).list()
    assert caught.value.lasting


def test_a_missing_library_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(remote.MODULES, "gs", "a_library_that_is_not_installed")
    fault = remote.missing_library("gs://bucket/models")
    assert fault == (
        "a_library_that_is_not_installed is not installed; install it with pip install 'faster-rcnn-service[store]'"
    )
    assert remote.missing_library("file:///srv/models") is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("S3://Bucket/models/", "s3://Bucket/models"),
        ("gs://bucket", "gs://bucket"),
        ("file:///srv/models", "file:///srv/models"),
        ("abfs://models@account.dfs.core.windows.net/store", "abfs://models@account.dfs.core.windows.net/store"),
    ],
)
def test_a_url_is_written_in_one_way(url, expected):
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/models", "begins with s3://, gs://, az:// or file://; ftp:// is not supported"),
        ("https://bucket.s3.amazonaws.com/models", "https:// is not supported"),
        ("s3:/bucket/models", "a complete URL such as s3://bucket/models"),
        ("s3://", "a complete URL such as s3://bucket/models"),
        ("file://", "file:///srv/models"),
        ("s3://key:secret@bucket/models", "without a query or a password"),
        ("az://models?sig=secret", "without a query or a password"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused(url, words):
    with pytest.raises(ValueError, match=r"must be") as caught:
        parse_url(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_store_has_a_copy_of_its_own(tmp_path):
    urls = ["s3://a/models", "s3://b/models", "s3://a/models/x", "gs://a/models", "s3://a-models"]
    assert len({copy_folder(url, tmp_path) for url in urls}) == len(urls)
    assert copy_folder("s3://a/models/", tmp_path) == copy_folder("S3://a/models", tmp_path)


@given(st.lists(st.text(alphabet="ab1./\\\x00", min_size=1, max_size=12), max_size=6))
def test_no_name_in_a_bucket_leads_out_of_the_copy(keys):
    found = {f"bucket/store/{key}": {"type": "file", "size": 1, "ETag": "x"} for key in keys}
    listed = contents(found, "bucket/store", "s3://bucket/store")
    for place, files in listed.versions.items():
        for path in [place, *(f"{place}/{name}" for name in files)]:
            assert Path(os.path.normpath(f"/copy/{path}")) == Path(f"/copy/{path}")
            assert not any(word.startswith(".") for word in path.split("/"))
            assert "\\" not in path
            assert "\0" not in path


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["model.json"], "this is the folder of one version; set it to 's3://bucket/models'"),
        (["1/model.json"], "this is the folder of one model; set it to 's3://bucket/models/shapes'"),
        (["a/shapes/1/model.json"], "a folder above the model store; set it to 's3://bucket/models/shapes/1/a'"),
        (["shapes/1/model.json", "shapes/1/old/1/model.json"], None),
        (["some/model.json"], None),
    ],
)
def test_a_url_a_level_too_high_or_too_low_is_recognised(keys, expected):
    found = {f"bucket/models/shapes/1/{key}": {"type": "file", "size": 1, "ETag": "x"} for key in keys}
    misplaced = contents(found, "bucket/models/shapes/1", "s3://bucket/models/shapes/1").misplaced
    assert misplaced == expected if expected is None else misplaced and expected in misplaced


def test_the_record_of_a_version_holds_the_sizes_and_stamps(s3, copy, tmp_path):
    folder = publish(s3, tmp_path, 1)
    Mirror(Remote(s3.url), copy).sync()
    record = json.loads((copy / "shapes" / "1" / mirror.RECORD).read_text())
    assert {name: size for name, (size, _) in record.items()} == {
        file.name: file.stat().st_size for file in folder.iterdir()
    }


@pytest.mark.contract("4.9", "7.1")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_store": "s3://no-such-bucket/models"}, "there is no such bucket or folder; correct its name"),
        ({"model_store": "gs://bucket/models"}, "is not installed; install it with pip install"),
        ({"model_cache": "/dev/null/models"}, "the folder for fetched models cannot be made or written"),
        ({"default_model": "other"}, "the model store has no such model; it has shapes"),
        ({"default_model": "shapes/7"}, "the model store has no such version of shapes; it has 1"),
        ({"model_store": "shapes"}, "this is the folder of one model; set it to 's3://models-"),
        ({}, None),
    ],
)
def test_what_prevents_the_use_of_a_store_is_found_before_a_model_is_loaded(s3, tmp_path, monkeypatch, change, words):
    publish(s3, tmp_path, 1)
    monkeypatch.setitem(remote.MODULES, "gs", "a_library_that_is_not_installed")
    if change.get("model_store") == "shapes":
        change = {"model_store": f"{s3.url}/shapes"}
    given = {"model_store": s3.url, "model_cache": str(tmp_path / "cache")} | change
    found = list(setting_checks.faults(Settings(**given), flags=set()))
    if words is None:
        assert found == []
    else:
        (line,) = found
        (name,) = change
        assert line.startswith(f"{name.upper()}=")
        assert words in line


@pytest.mark.contract("4.9")
def test_a_copy_can_be_served_whatever_is_wrong_with_the_store(s3, tmp_path):
    publish(s3, tmp_path, 1)
    settings = Settings(model_store="s3://no-such-bucket/models", model_cache=tmp_path / "cache")
    assert len(list(setting_checks.faults(settings, flags=set()))) == 1
    Mirror(Remote(s3.url), settings.store_folder).sync()
    assert list(setting_checks.faults(settings, flags=set())) == []


@pytest.mark.contract("4.9", "4.5", "6.1")
def test_pin_changes_the_store_at_a_url_and_checks_the_version(s3, tmp_path, capsys):
    for version in (1, 2):
        publish(s3, tmp_path, version)
    s3.put("shapes/3/model.json", graphs.publish(tmp_path / "x", "shapes", 3).joinpath("model.json").read_bytes())
    s3.put("shapes/4/model.json", b"{")
    assert pin.main(["shapes/1", "--store", s3.url]) == 0
    assert capsys.readouterr().out == "shapes is pinned to version 1\n"
    assert s3.get("shapes/default") == b"1\n"
    assert pin.main(["shapes", "--default", "--store", s3.url]) == 0
    assert s3.get("default") == b"shapes\n"
    capsys.readouterr()
    assert pin.main(["--store", s3.url]) == 0
    assert capsys.readouterr().out == "shapes: versions 1, 2, 3, 4; pinned to 1\ndefault: shapes\n"
    assert pin.main(["shapes", "--newest", "--store", s3.url]) == 0
    transfers(s3)
    for place, words in (
        ("shapes/3", "shapes/3 could not be served: model.onnx is missing or incomplete"),
        ("shapes/4", "shapes/4 could not be served: model.json"),
        ("shapes/9", "shapes has no version 9; it has 1, 2, 3, 4"),
    ):
        assert pin.main([place, "--store", s3.url]) == 1
        assert words in capsys.readouterr().err
    assert not [line for line in transfers(s3) if "PUT" in line or "model.onnx" in line]
    assert pin.main(["shapes/1", "--store", "s3://no-such-bucket"]) == 1
    assert "there is no such bucket or folder" in capsys.readouterr().err
    assert pin.main(["shapes/1", "--store", "ftp://host/models"]) == 2
    assert "ftp:// is not supported" in capsys.readouterr().err
