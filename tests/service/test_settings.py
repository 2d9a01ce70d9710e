"""The settings: from which variables they come, and what their values may look like."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("REQUIRE_CUDA", "1")
    read = Settings()
    assert (read.port, read.require_cuda, read.host) == (9001, True, "127.0.0.1")


def test_every_setting_has_a_description():
    fields = Settings.model_fields
    assert [name for name, field in fields.items() if not field.description] == []


@pytest.mark.contract("7.1")
@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_blank_value_means_the_default(monkeypatch, name, blank):
    monkeypatch.setenv(name.upper(), blank)
    assert Settings() == Settings.model_construct()
    assert Settings(**{name: blank}) == Settings.model_construct()


@pytest.mark.parametrize("name", ["port", "Port", "PORT_", "xPORT"])
def test_only_the_name_in_capitals_is_a_setting(monkeypatch, name):
    monkeypatch.setenv(name, "9001")
    assert Settings().port == 8000


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", " 9001 ", 9001),
        ("host", "::1\n", "::1"),
        ("require_cuda", "True ", True),
        ("require_cuda", "YES", True),
        ("access_log", "off", False),
        ("log_level", " WARNING", "warning"),
        ("drain_timeout", "1e1", 10.0),
    ],
)
def test_spaces_around_a_value_and_capitals_in_words_do_not_matter(name, text, value):
    assert getattr(Settings(**{name: text}), name) == value


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("mark", ["'", '"'])
def test_quotation_marks_around_a_value_are_refused(name, mark):
    with pytest.raises(ValidationError):
        Settings(**{name: f"{mark}1{mark}"})


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            name
            for name, field in Settings.model_fields.items()
            if field.annotation is float and name != "min_transfer_rate"
        ]
    )
)
def test_no_duration_is_infinite_or_longer_than_a_day(name):
    for value in (math.inf, math.nan, 86_401, "1e300", "inf", "nan"):
        with pytest.raises(ValidationError):
            Settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("image_formats", " TIFF, jpg ", "jpeg,tiff"),
        ("cors_origins", "*", "*"),
        (
            "cors_origins",
            "http://localhost:3000, https://App.example.org",
            "http://localhost:3000,https://app.example.org",
        ),
        ("trusted_proxies", "unix,10.0.0.0/8", "unix,10.0.0.0/8"),
        ("uds_mode", "0660", "0660"),
    ],
)
def test_lists_and_modes_are_read(name, value, kept):
    assert getattr(Settings(**{name: value}), name) == kept


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image_formats", "jpeg,jxl", "must be one or more of jpeg, png"),
        ("cors_origins", "https://app.example.org/", "without a path"),
        ("cors_origins", "app.example.org", "must be origins"),
        ("cors_origins", "*,https://app.example.org", "or \\* alone"),
        ("cors_origins", "null", "must be origins"),
        ("uds_mode", "rw-rw----", "three digits"),
        ("uds_mode", "888", "three digits"),
        ("trusted_proxies", "unix:/run/s", "must be IP addresses"),
    ],
)
def test_a_wrong_list_or_mode_is_refused_with_what_is_allowed(name, value, words):
    with pytest.raises(ValueError, match=words):
        Settings(**{name: value})
