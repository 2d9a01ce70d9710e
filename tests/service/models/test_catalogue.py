"""The catalogue in situations that the tests over HTTP (test_swap) cannot create."""

import threading
from pathlib import Path

import pytest

from service.engine.devices import find
from service.engine.engine import Engine
from service.engine.providers import CPU
from service.models.catalogue import RETRY_SECONDS, Catalogue
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
def served(tmp_path, clock):
    graphs.publish(tmp_path / "store", version=1)
    made = Catalogue(tmp_path / "store", find(CPU, None, 1, None, 1), False, Metrics(), clock)
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
    assert "MemoryError" in served.refused["plain/2"]
    assert [*served.models["plain"]] == [1]
    clock.now += RETRY_SECONDS - 1
    served.refresh()
    assert [*served.models["plain"]] == [1]
    clock.now += 1
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]
    assert served.refused == {}


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


def test_the_previous_default_stays_in_effect_when_the_file_cannot_be_read(served, tmp_path, caplog):
    default = tmp_path / "store" / "default"
    default.write_text("plain")
    served.refresh()
    default.write_bytes(b"\xff\xfe")
    for _ in range(2):
        served.refresh()
    assert served.default == "plain"
    assert caplog.text.count("default cannot be read") == 1
    default.unlink()
    served.refresh()
    assert served.default is None


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


def test_a_refresh_replaces_the_dictionaries_that_other_threads_read(served, tmp_path):
    models, versions, refused = served.models, served.models["plain"], served.refused
    graphs.publish(tmp_path / "store", version=2)
    graphs.publish(tmp_path / "store", version=3, card={"sha256": "0" * 64})
    served.refresh()
    assert ([*served.models["plain"]], [*served.refused]) == ([1, 2], ["plain/3"])
    for version in ("1", "3"):
        (tmp_path / "store" / "plain" / version).rename(tmp_path / f"gone-{version}")
    served.refresh()
    assert ([*served.models["plain"]], [*served.refused]) == ([2], [])
    # unchanged since before the first refresh
    assert [*models] == ["plain"]
    assert models["plain"] is versions
    assert [*versions] == [1]
    assert refused == {}
