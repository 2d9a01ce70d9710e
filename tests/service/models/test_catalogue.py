"""What the catalogue does that the tests over HTTP (test_swap) cannot bring about."""

import threading
from pathlib import Path

import pytest

from service.engine.devices import find
from service.engine.engine import Engine
from service.engine.providers import CPU
from service.models import catalogue
from service.models.catalogue import Catalogue
from service.telemetry.metrics import Metrics
from tests.service import graphs


@pytest.fixture
def served(tmp_path):
    graphs.publish(tmp_path / "store", version=1)
    made = Catalogue(tmp_path / "store", find(CPU, None, 1, None, 1), False, Metrics())
    made.refresh()
    return made


def test_a_version_that_takes_the_place_of_another_is_there_before_that_goes(served, tmp_path, monkeypatch):
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


def test_what_fails_for_reasons_that_may_pass_is_tried_again_later(served, tmp_path, monkeypatch):
    graphs.publish(tmp_path / "store", version=2)
    with monkeypatch.context() as scarce:
        scarce.setattr(Engine, "warm_up", lambda *_: (_ for _ in ()).throw(MemoryError()))
        served.refresh()
    assert "MemoryError" in served.refused["plain/2"]
    assert [*served.models["plain"]] == [1]
    served.refresh()
    assert [*served.models["plain"]] == [1]  # not at every look
    monkeypatch.setattr(catalogue, "RETRY_SECONDS", 0)
    served._again = dict.fromkeys(served._again, 0.0)
    served.refresh()
    assert sorted(served.models["plain"]) == [1, 2]
    assert served.refused == {}


def test_what_is_served_from_a_folder_that_cannot_be_listed_any_more_stays(served, tmp_path, monkeypatch, caplog):
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


def test_a_default_that_cannot_be_read_changes_nothing(served, tmp_path, caplog):
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


def test_a_version_is_drained_once_by_the_last_of_those_who_use_it(served):
    model = served.models["plain"][1]
    drained = []
    with model.in_use():
        with model.in_use():
            model.retire(drained.append)
        assert drained == []
    assert len(drained) == 1
    with model.in_use():  # chosen before it was retired, begun after
        pass
    assert len(drained) == 1


def test_a_version_is_drained_once_whoever_comes_and_goes_meanwhile(served):
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
