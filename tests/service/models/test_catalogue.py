"""The catalogue in situations that the tests over HTTP (test_swap) cannot create."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import orjson
import pytest

from service.engine import model as model_module
from service.engine.devices import find
from service.engine.engine import Engine
from service.engine.model import ModelUnreadableError
from service.engine.options import EngineOptions
from service.engine.providers import CPU
from service.http.routes import models
from service.models.attempts import FIRST_RETRY_SECONDS, STALLED_SECONDS
from service.models.catalogue import Catalogue
from service.models.choice import NoDefaultModelError, NotServedError
from service.models.opening import Opener
from service.models.store import StoreMissingError
from service.telemetry.metrics import Metrics
from tests.service import graphs


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def served(tmp_path, clock, metrics):
    graphs.publish(tmp_path / "store", version=1)
    made = Catalogue(tmp_path / "store", find(CPU, None, 1, None, 1), EngineOptions(), metrics, clock=clock)
    made.refresh()
    return made


def test_a_replacement_is_loaded_before_the_old_version_is_removed(served, tmp_path, monkeypatch):
    (tmp_path / "store" / "plain" / "1").rename(tmp_path / "gone")
    graphs.publish(tmp_path / "store", version=2)
    while_loading = []
    warm_up = Engine.warm_up
    monkeypatch.setattr(
        Engine, "warm_up", lambda *how: while_loading.append([*served.models["plain"]]) or warm_up(*how)
    )
    served.refresh()
    assert while_loading == [[1]]
    assert [*served.models["plain"]] == [2]


def test_a_version_that_failed_for_a_temporary_reason_is_tried_again_later(served, tmp_path, monkeypatch, clock):
    graphs.publish(tmp_path / "store", version=2)
    with monkeypatch.context() as scarce:
        scarce.setattr(Engine, "warm_up", lambda *_: (_ for _ in ()).throw(MemoryError()))
        served.refresh()
    assert "out of memory" in served.choices.refused["plain/2"]
    assert [*served.models["plain"]] == [1]
    clock.now += FIRST_RETRY_SECONDS - 1
    served.refresh()
    assert [*served.models["plain"]] == [1]
    clock.now += 1
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]
    assert served.choices.refused == {}


def test_versions_stay_served_when_their_folder_can_no_longer_be_listed(served, tmp_path, monkeypatch, caplog):
    graphs.publish(tmp_path / "store", name="other", version=1)
    iterdir = Path.iterdir

    def as_another_user(folder):
        if folder.name == "plain":
            raise PermissionError
        return iterdir(folder)

    with monkeypatch.context() as forbidden:
        forbidden.setattr(Path, "iterdir", as_another_user)
        for _ in range(2):
            served.refresh()
    assert {name: [*versions] for name, versions in served.models.items()} == {"plain": [1], "other": [1]}
    assert caplog.text.count("plain cannot be listed") == 1
    (tmp_path / "store" / "plain" / "1").rename(tmp_path / "gone")
    served.refresh()
    assert [*served.models] == ["other"]


def test_a_retired_version_is_drained_once_by_its_last_request(served):
    model = served.models["plain"][1]
    drained = []
    with model.in_use():
        with model.in_use():
            model.retire(drained.append)
        assert drained == []
    assert len(drained) == 1
    with model.in_use():  # by a request that chose the version before it was retired
        pass
    assert len(drained) == 1


def test_a_retired_version_is_drained_once_while_other_threads_use_it(served):
    model = served.models["plain"][1]
    for _ in range(50):
        drained, begin = [], threading.Barrier(3)

        def use(begin=begin):
            begin.wait()
            for _ in range(50):
                with model.in_use():
                    pass

        users = [threading.Thread(target=use) for _ in range(2)]
        for user in users:
            user.start()
        begin.wait()
        model.retire(drained.append)
        for user in users:
            user.join()
        assert len(drained) == 1


def test_a_refresh_replaces_what_other_threads_read(served, tmp_path):
    before = served.choices
    graphs.publish(tmp_path / "store", version=2)
    graphs.publish(tmp_path / "store", version=3, card={"sha256": "0" * 64})
    served.refresh()
    assert ([*served.choices.served["plain"]], [*served.choices.refused]) == ([1, 2], ["plain/3"])
    for version in ("1", "3"):
        (tmp_path / "store" / "plain" / version).rename(tmp_path / f"gone-{version}")
    served.refresh()
    assert ([*served.choices.served["plain"]], [*served.choices.refused]) == ([2], [])
    assert {name: [*versions] for name, versions in before.served.items()} == {"plain": [1]}
    assert before.refused == {}


# --- the default and the pins ----------------------------------------------------------------------------------------


def answering(catalogue) -> tuple[str, int] | str:
    """The model and version that a request without a name gets, or the reason of the error."""
    try:
        card = catalogue.choices.choose(None, None).card
    except (NotServedError, NoDefaultModelError) as error:
        return getattr(error, "reason", "no default")
    return card.name, card.version


@pytest.mark.contract("4.5")
def test_a_default_stays_in_effect_when_its_file_is_removed_or_unusable(served, tmp_path, caplog):
    graphs.publish(tmp_path / "store", "other")
    default = tmp_path / "store" / "default"
    default.write_text("other")
    served.refresh()
    assert answering(served) == ("other", 1)
    default.write_bytes(b"\xff\xfe")
    for _ in range(2):
        served.refresh()
    assert answering(served) == ("other", 1)
    assert caplog.text.count("cannot be used (it is not text in UTF-8); other stays the default") == 1
    default.unlink()
    served.refresh()
    assert answering(served) == ("other", 1)
    default.write_text("plain")
    served.refresh()
    assert answering(served) == ("plain", 1)


@pytest.mark.contract("4.5")
def test_the_only_model_stays_the_default_when_others_join_it_or_replace_it(served, tmp_path):
    assert answering(served) == ("plain", 1)
    graphs.publish(tmp_path / "store", "other")
    served.refresh()
    assert answering(served) == ("plain", 1)
    (tmp_path / "store" / "plain").rename(tmp_path / "gone")
    served.refresh()
    assert answering(served) == "default_model"
    (tmp_path / "gone").rename(tmp_path / "store" / "plain")
    served.refresh()
    assert answering(served) == ("plain", 1)


@pytest.mark.parametrize("other", ["refused", "empty", "unlistable"])
@pytest.mark.contract("4.5")
def test_a_model_is_the_only_one_only_if_no_other_has_a_folder(tmp_path, clock, monkeypatch, other):
    store = tmp_path / "store"
    graphs.publish(store, "plain")
    (store / "other" / "1").mkdir(parents=True)
    if other == "empty":
        (store / "other" / "1").rmdir()
    iterdir = Path.iterdir

    def as_another_user(folder):
        if folder.name == "other" and other == "unlistable":
            raise PermissionError
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", as_another_user)
    made = Catalogue(store, find(CPU, None, 1, None, 1), EngineOptions(), Metrics(), clock=clock)
    made.refresh()
    assert [*made.choices.served] == ["plain"]
    assert answering(made) == "no default"


@pytest.mark.contract("4.5")
def test_an_unusable_default_at_the_start_is_an_error_and_not_a_guess(tmp_path, clock):
    graphs.publish(tmp_path / "store", "plain")
    (tmp_path / "store" / "default").write_text("")
    made = Catalogue(tmp_path / "store", find(CPU, None, 1, None, 1), EngineOptions(), Metrics(), clock=clock)
    made.refresh()
    assert answering(made) == "default_model"
    (tmp_path / "store" / "default").write_text("plain")
    made.refresh()
    assert answering(made) == ("plain", 1)


@pytest.mark.contract("4.5")
def test_a_new_version_never_answers_in_spite_of_a_pin_that_was_set_before_it(served, metrics, tmp_path, monkeypatch):
    (tmp_path / "store" / "plain" / "default").write_text("1\n")
    graphs.publish(tmp_path / "store", version=2)
    while_loading = []

    def once_version_2_is_served(_: float) -> None:
        while_loading.append(answering(served))

    monkeypatch.setattr(metrics.model_load_seconds, "observe", once_version_2_is_served)
    served.refresh()
    assert while_loading == [("plain", 1)]
    assert sorted(served.models["plain"]) == [1, 2]


@pytest.mark.contract("4.5")
def test_a_version_that_is_pinned_when_it_is_published_takes_over_once_it_is_loaded(served, tmp_path, monkeypatch):
    graphs.publish(tmp_path / "store", version=2)
    (tmp_path / "store" / "plain" / "default").write_text("2\n")
    while_loading = []
    warm_up = Engine.warm_up
    monkeypatch.setattr(Engine, "warm_up", lambda *how: while_loading.append(answering(served)) or warm_up(*how))
    served.refresh()
    assert while_loading == [("plain", 1)]
    assert answering(served) == ("plain", 2)


@pytest.mark.contract("4.5")
def test_no_other_version_answers_when_the_pinned_one_is_removed(served, tmp_path, caplog):
    graphs.publish(tmp_path / "store", version=2)
    pin = tmp_path / "store" / "plain" / "default"
    pin.write_text("1")
    served.refresh()
    assert answering(served) == ("plain", 1)
    (tmp_path / "store" / "plain" / "1").rename(tmp_path / "gone")
    served.refresh()
    assert answering(served) == "pinned_version"
    pin.write_text("nonsense")
    for _ in range(2):
        served.refresh()
    assert answering(served) == "pinned_version"
    assert caplog.text.count("version 1 stays pinned") == 1
    pin.unlink()
    served.refresh()
    assert answering(served) == ("plain", 2)


@pytest.mark.contract("4.5")
def test_a_pin_that_cannot_be_read_changes_nothing_except_at_the_start(served, tmp_path, clock):
    graphs.publish(tmp_path / "store", version=2)
    served.refresh()
    (tmp_path / "store" / "plain" / "default").mkdir()
    served.refresh()
    assert answering(served) == ("plain", 2)
    made = Catalogue(tmp_path / "store", find(CPU, None, 1, None, 1), EngineOptions(), Metrics(), clock=clock)
    made.refresh()
    assert answering(made) == "pinned_version"
    assert made.choices.choose("plain", 1).card.version == 1


# --- a store that is not whole ---------------------------------------------------------------------------------------


@pytest.mark.contract("4.4")
def test_what_is_served_stays_when_every_model_vanishes_at_once(served, tmp_path):
    (tmp_path / "store").rename(tmp_path / "volume")
    (tmp_path / "store").mkdir()  # the mount point without its volume
    (tmp_path / "store" / "lost+found").mkdir()
    with pytest.raises(StoreMissingError, match="is empty; mount its volume"):
        served.refresh()
    assert answering(served) == ("plain", 1)


@pytest.mark.parametrize(
    "error", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT]
)
@pytest.mark.contract("4.3")
def test_a_version_that_cannot_be_read_now_is_tried_again_ever_less_often(tmp_path, clock, monkeypatch, error):
    tried = []
    graphs.publish(tmp_path / "store", version=2)
    made = Catalogue(tmp_path / "store", find(CPU, None, 1, None, 1), EngineOptions(), Metrics(), clock=clock)

    def fails(self, directory, served):
        tried.append(clock.now)
        raise OSError(error, os.strerror(error), str(directory / "model.json"))

    with monkeypatch.context() as scarce:
        scarce.setattr(Opener, "open", fails)
        for clock.now in range(200):
            made.refresh()
    # 2, 4, 8, 16, 32, then 60 s
    assert tried == [0, 2, 6, 14, 30, 62, 122, 182]
    assert made.trying
    assert str(tmp_path) not in made.choices.refused["plain/2"]
    clock.now = 242
    made.refresh()
    assert answering(made) == ("plain", 2)
    assert made.choices.refused == {}


def test_a_change_of_permissions_alone_is_a_reason_to_look_again(served, tmp_path, monkeypatch):
    folder = graphs.publish(tmp_path / "store", version=2)
    read = Path.stat
    with monkeypatch.context() as forbidden:
        forbidden.setattr(Opener, "open", lambda *_: (_ for _ in ()).throw(ModelUnreadableError("not now")))
        served.refresh()
    assert read(folder)
    assert served.choices.refused == {"plain/2": "not now"}
    (folder / "model.json").chmod(0o640)
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]


def test_a_served_version_is_not_opened_again_when_only_its_permissions_change(served, tmp_path):
    before = served.choices.choose("plain", 1)
    (tmp_path / "store" / "plain" / "1" / "model.json").chmod(0o640)
    served.refresh()
    assert served.choices.choose("plain", 1) is before


# --- copies in progress ----------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The folders that were read, in order."""
    seen: list[Path] = []
    open_version = Opener.open
    monkeypatch.setattr(
        Opener, "open", lambda self, folder, *how: seen.append(folder) or open_version(self, folder, *how)
    )
    return seen


@pytest.mark.contract("4.2")
def test_a_copy_in_progress_is_reported_with_its_bytes_and_not_read_again_while_it_grows(
    served, tmp_path, reads, clock, caplog
):
    caplog.set_level("INFO")
    whole = graphs.publish(tmp_path / "aside", version=2)
    graph = (whole / "model.onnx").read_bytes()
    folder = tmp_path / "store" / "plain" / "2"
    folder.mkdir()
    (folder / "model.json").write_bytes((whole / "model.json").read_bytes())
    card = (whole / "model.json").stat().st_size
    for share in range(5):
        (folder / "model.onnx").write_bytes(graph[: len(graph) * share // 5])
        served.refresh()
        clock.now += 2
        expected = card + len(graph) * share // 5
        assert served.choices.arriving == {"plain/2": f"it is still arriving, {expected} bytes so far"}
        assert served.choices.refused == {}
    assert len(reads) == 1
    assert "publish the model again" not in caplog.text
    assert caplog.text.count("plain/2 is still arriving") == 1
    (folder / "model.onnx").write_bytes(graph)
    served.refresh()  # it has changed once more
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]
    assert served.choices.arriving == {}


@pytest.mark.parametrize("missing", ["model.json", "model.onnx", "half of model.onnx", "half of model.json", "all"])
@pytest.mark.contract("4.2")
def test_a_copy_that_stalls_is_refused_after_a_while_and_served_when_it_goes_on(
    served, tmp_path, reads, clock, missing
):
    folder = graphs.publish(tmp_path / "store", version=2)
    parts = {name: (folder / name).read_bytes() for name in ("model.json", "model.onnx")}
    for name, data in parts.items():
        if missing in (name, "all"):
            (folder / name).unlink()
        elif missing == f"half of {name}":
            (folder / name).write_bytes(data[: len(data) // 2])
    served.refresh()
    clock.now += STALLED_SECONDS - 1
    served.refresh()
    assert [*served.choices.arriving] == ["plain/2"]
    clock.now += 1
    served.refresh()
    assert served.choices.arriving == {}
    assert "publish the model again" in served.choices.refused["plain/2"]
    assert len(reads) == 1
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]


def test_a_version_that_is_replaced_file_by_file_stays_served_and_is_not_refused_in_between(served, tmp_path, clock):
    whole = graphs.publish(tmp_path / "aside", fails_on_white=True)
    folder = tmp_path / "store" / "plain" / "1"
    (folder / "model.json").write_bytes((whole / "model.json").read_bytes())  # the hash of the new graph
    served.refresh()
    assert [*served.choices.arriving] == ["plain/1"]
    assert answering(served) == ("plain", 1)
    (folder / "model.onnx").write_bytes((whole / "model.onnx").read_bytes())
    for _ in range(2):
        served.refresh()
    assert served.choices.arriving == served.choices.refused == {}
    assert (
        served.choices.choose("plain", 1).card.sha256 == hashlib.sha256((whole / "model.onnx").read_bytes()).hexdigest()
    )


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.contract("4.3")
def test_ten_thousand_refused_versions_make_few_log_lines_and_few_series(served, metrics, tmp_path, caplog):
    for version in range(2, 10_002):
        (tmp_path / "store" / "plain" / str(version)).mkdir()
        (tmp_path / "store" / "plain" / str(version) / "model.json").write_text("[]")
    served.refresh()
    assert len(served.choices.refused) == 10_000
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 21
    assert "9980 more versions" in lines[-1]
    exposed = metrics.scrape().decode()
    assert exposed.count("detector_model_refused{") == 20
    assert 'detector_model_refused{model="plain/2"}' in exposed  # by number: 2, 3, … 21
    assert "detector_refused_versions 10000.0" in exposed
    body = models.answer(served.choices, None)
    assert len(body) < 10_000
    assert orjson.loads(body)["refused_total"] == 10_000
    caplog.clear()
    served.refresh()
    assert "refused" not in caplog.text


@pytest.mark.contract("4.2", "4.8")
def test_a_version_whose_graph_for_this_provider_is_still_being_copied_is_arriving(
    served, tmp_path, clock, monkeypatch
):
    monkeypatch.setitem(model_module.SUITABLE, (CPU, "strict"), ("cuda",))
    folder = graphs.publish(tmp_path / "store", version=2)
    data = graphs.graph().SerializeToString()
    file = graphs.add_graph(folder, data)
    file.write_bytes(data[:100])
    so_far = sum((folder / name).stat().st_size for name in ("model.json", "model.onnx"))
    served.refresh()
    assert served.choices.arriving == {"plain/2": f"it is still arriving, {so_far + 100} bytes so far"}
    file.write_bytes(data[:200])  # its copy goes on
    served.refresh()
    assert served.choices.arriving == {"plain/2": f"it is still arriving, {so_far + 200} bytes so far"}
    file.write_bytes(data)
    served.refresh()
    served.refresh()  # its files have not changed since
    assert sorted(served.models["plain"]) == [1, 2]


@pytest.mark.contract("4.3", "4.8")
def test_a_graph_that_changes_under_a_served_version_is_noticed_where_it_runs(served, tmp_path, clock, monkeypatch):
    monkeypatch.setitem(model_module.SUITABLE, (CPU, "strict"), ("cuda",))
    data = graphs.graph().SerializeToString()
    folder = graphs.publish(tmp_path / "store", version=2)
    file = graphs.add_graph(folder, data)
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]
    with file.open("r+b") as opened:
        opened.write(bytes([data[0] ^ 1]))
    served.refresh()
    clock.now += STALLED_SECONDS
    served.refresh()
    assert "model.cuda.onnx has SHA-256" in served.choices.refused["plain/2"]
    assert "it still answers as it was when it was loaded" in served.choices.refused["plain/2"]


@pytest.mark.contract("4.8")
def test_a_graph_that_does_not_run_here_may_be_missing(served, tmp_path):
    folder = graphs.publish(tmp_path / "store", version=2)
    graphs.add_graph(folder, b"for a GPU").unlink()
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]
    assert not served.choices.arriving
