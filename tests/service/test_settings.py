import pytest

from service import settings


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("REQUIRE_CUDA", "1")
    read = settings.from_environment()
    assert (read.port, read.require_cuda, read.host) == (9001, True, "127.0.0.1")


def test_each_bad_value_gets_a_line_that_names_its_variable(monkeypatch):
    monkeypatch.setenv("PORT", "http")
    monkeypatch.setenv("MAX_IN_FLIGHT", "0")
    with pytest.raises(ValueError, match="PORT") as caught:
        settings.from_environment()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("PORT='http': ")
    assert lines[1].startswith("MAX_IN_FLIGHT='0': ")


def test_every_setting_has_a_description():
    fields = settings.Settings.model_fields
    assert [name for name, field in fields.items() if not field.description] == []
