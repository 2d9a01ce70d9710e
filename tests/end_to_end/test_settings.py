"""Settings of a real process: blank ones, misspelled ones, and faulty ones, which are named before models load."""

import pytest

from tests.end_to_end.conftest import Server

SOON = 30  # seconds; limits how long a test waits


@pytest.mark.contract("7.1")
def test_blank_settings_mean_the_defaults_and_a_misspelled_one_is_a_warning(start):
    server = start(HOST="", ENGINES="", REQUIRE_CUDA="", MAX_PIXELS=" ", API_KEYS_FILE="", MODEL_STOR="x").ready()
    assert server.address[0] == "127.0.0.1"
    (line,) = [line for line in server.lines if "MODEL_STOR " in line]
    assert line.endswith("WARNING service.serve: MODEL_STOR is not a setting; did you mean MODEL_STORE?\n")


@pytest.mark.contract("7.1")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOST", "x86_64-conda-linux-gnu"),
        ("MODEL_STORE", "/nowhere"),
        ("DEFAULT_MODEL", "nosuch"),
        ("API_KEYS_FILE", "/nowhere"),
    ],
)
def test_a_faulty_setting_ends_the_process_with_one_line(start, variable, value):
    server: Server = start(**{variable: value})
    assert server.process.wait(SOON) in (1, 2)
    server.reader.join(SOON)
    (line,) = server.lines
    assert f"{variable}={value!r}: " in line
