"""`faster-rcnn pin`: what it writes, and its errors."""

import os

import pytest

from service import pin
from service.models.store import read_default, read_pin
from tests.service import graphs


@pytest.fixture
def store(tmp_path):
    for version in (1, 2, 10):
        graphs.publish(tmp_path / "store", "shapes", version)
    graphs.publish(tmp_path / "store", "cells", 1)
    return tmp_path / "store"


def run(store, *words: str) -> int:
    return pin.main([*words, "--store", str(store)])


@pytest.mark.contract("4.5", "6.1")
def test_a_version_is_pinned_and_released(store, capsys):
    assert run(store, "shapes/2") == 0
    assert "shapes is pinned to version 2" in capsys.readouterr().out
    assert read_pin(store / "shapes") == 2
    assert read_pin(store / "cells") is None
    assert run(store, "shapes", "--newest") == 0
    assert read_pin(store / "shapes") is None
    assert run(store, "shapes", "--newest") == 0  # already so


@pytest.mark.contract("4.5", "6.1")
def test_the_default_is_a_model_or_one_version_of_it(store):
    assert run(store, "cells", "--default") == 0
    assert read_default(store) == ("cells", None)
    assert run(store, "shapes/10", "--default") == 0
    assert read_default(store) == ("shapes", 10)
    assert read_pin(store / "shapes") is None


def test_without_a_model_the_store_is_listed(store, capsys):
    run(store, "shapes/2")
    run(store, "cells", "--default")
    capsys.readouterr()
    assert run(store) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cells: versions 1; the highest answers",
        "shapes: versions 1, 2, 10; pinned to 2",
        "default: cells",
    ]
    (store / "default").unlink()
    (store / "shapes" / "default").write_text("two")
    assert run(store) == 0
    listed = capsys.readouterr().out
    assert "default: none is set" in listed
    assert "it must be the number of a version" in listed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["shapes"], 1, "name a version, such as shapes/10; shapes has 1, 2, 10"),
        (["shapes/3"], 1, "shapes has no version 3; it has 1, 2, 10"),
        (["unicorn/1"], 1, "there is no model unicorn"),
        (["../x"], 2, "../x: it must be the name of a model, or name/version"),
        (["--newest"], 2, "name a model"),
        (["shapes/1", "--newest"], 2, "--newest takes a model without a version"),
        (["shapes", "--newest", "--default"], 2, "not allowed with"),
        (["shapes", "cells"], 2, "unexpected argument cells"),
    ],
)
@pytest.mark.contract("6.2")
def test_an_error_is_one_line_and_changes_nothing(store, capsys, words, code, message):
    before = sorted(store.rglob("*"))
    assert run(store, *words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("faster-rcnn pin: ")
    assert message in line
    assert sorted(store.rglob("*")) == before


def test_a_version_that_could_not_be_served_is_not_pinned(store, capsys):
    (store / "shapes" / "2" / "model.onnx").write_bytes(b"broken")
    assert run(store, "shapes/2") == 1
    assert "shapes/2 could not be served: model.onnx is cut short" in capsys.readouterr().err
    assert read_pin(store / "shapes") is None


def test_a_store_that_is_missing_or_cannot_be_written_is_named(store, tmp_path, capsys, monkeypatch):
    assert run(tmp_path / "nowhere") == 1
    assert "not a directory" in capsys.readouterr().err

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system", str(store / "shapes"))

    monkeypatch.setattr(pin, "write_file", read_only)
    assert run(store, "shapes/1") == 1
    assert f"{store / 'shapes'}: read-only file system; nothing was changed" in capsys.readouterr().err


def test_the_store_is_the_one_that_the_service_reads(store, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "MODEL_STORE", str(store))
    assert pin.main([]) == 0
    assert "cells: versions 1" in capsys.readouterr().out
