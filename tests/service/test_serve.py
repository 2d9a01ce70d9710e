"""`faster-rcnn serve` and `python -m service`: flags, variables, and mistakes that are refused at start."""

import subprocess
import sys
from pathlib import Path

import pytest

from service import serve
from service.settings import Settings

VARIABLES = [name.upper() for name in Settings.model_fields]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def read_settings(*words):
    return serve.read_settings(serve.read_flags(words))


def help_text(capsys, **options):
    with pytest.raises(SystemExit) as end:
        serve.main(["--help"], **options)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_without_flags_and_variables_the_settings_have_their_defaults():
    assert serve.read_settings({}) == Settings()


def test_every_setting_is_a_flag_with_its_description(capsys):
    shown = " ".join(help_text(capsys).split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown.replace(",", " ")
        assert " ".join((field.description or "").split()) in shown


def test_the_settings_most_often_changed_come_first(capsys):
    first, _, rest = help_text(capsys).partition("less often changed:")
    assert "--port" in first
    assert "--model-store" in first
    assert "--recent-bytes" in rest
    assert "(default: 8000)" in " ".join(first.split())
    assert "(default: )" not in first + rest
    assert set(serve.COMMON) <= set(Settings.model_fields)


def test_the_value_of_a_flag_has_the_type_of_its_setting():
    flags = ["--port", "9000", "--model-store", "models", "--drain-timeout", "1.5", "--log-level", "debug"]
    read = read_settings(*flags, "--access-log", "--engines", "2", "--no-require-cuda")
    assert (read.port, read.model_store, read.drain_timeout) == (9000, Path("models"), 1.5)
    assert (read.log_level, read.access_log, read.engines, read.require_cuda) == ("debug", True, 2, False)


@pytest.mark.parametrize(
    ("flags", "expected"), [([], None), (["--fixed-shapes"], True), (["--no-fixed-shapes"], False)]
)
def test_a_switch_without_a_fixed_default_is_on_off_or_left_to_the_service(flags, expected):
    assert read_settings(*flags).fixed_shapes is expected


def test_a_flag_overrides_a_variable(monkeypatch):
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("HOST", "::1")
    monkeypatch.setenv("REQUIRE_CUDA", "1")
    read = read_settings("--port=9000", "--no-require-cuda")
    assert (read.port, read.host, read.require_cuda) == (9000, "::1", False)


def test_a_flag_overrides_even_an_invalid_variable(monkeypatch):
    monkeypatch.setenv("PORT", "http")
    assert read_settings("--port", "9000").port == 9000


@pytest.mark.parametrize(
    ("flags", "variables", "lines"),
    [
        (["--prot", "1"], {}, ["unknown option --prot; did you mean --port?"]),
        (["--prot=1"], {}, ["unknown option --prot; did you mean --port?"]),
        (["--zzzz"], {}, ["unknown option --zzzz; --help lists the options"]),
        (["--por", "1"], {}, ["unknown option --por; did you mean --port?"]),  # abbreviations are not accepted
        (["9000"], {}, ["unexpected argument '9000'; settings are options, see --help"]),
        (["--port"], {}, ["--port: expected one argument"]),
        (["--access-log=1"], {}, ["--access-log/--no-access-log: ignored explicit argument '1'"]),
        (["--port", "http"], {}, ["--port 'http': must be a whole number, at least 0 and at most 65535"]),
        (["--engines", "0"], {"PORT": "http"}, ["PORT='http': ", "--engines '0': "]),
        ([], {"MAX_IN_FLIGHT": "0", "LOG_LEVEL": "loud"}, ["LOG_LEVEL='loud': ", "MAX_IN_FLIGHT='0': "]),
    ],
)
def test_each_mistake_is_one_line_that_names_its_flag_or_variable(monkeypatch, capsys, flags, variables, lines):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert serve.main(flags) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    found = printed.err.splitlines()
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(f"faster-rcnn serve: {start}")


@pytest.mark.parametrize("name", ["MODEL_STORE", "API_KEYS_FILE"])
def test_a_file_or_folder_that_does_not_exist_is_named_before_anything_is_loaded(monkeypatch, capsys, name):
    flag = f"--{name.lower().replace('_', '-')}"
    assert serve.main([flag, "/nowhere"]) == 1
    monkeypatch.setenv(name, "/nowhere")
    assert serve.main([]) == 1
    by_flag, by_variable = capsys.readouterr().err.splitlines()
    assert by_flag.startswith(f"faster-rcnn serve: {flag} '/nowhere': there is no such f")
    assert by_variable.startswith(f"faster-rcnn serve: {name}='/nowhere': there is no such f")


def test_python_m_service_reads_the_same_flags(capsys):
    assert help_text(capsys, prog="python -m service").startswith("usage: python -m service [OPTION ...]")
    done = subprocess.run(
        [sys.executable, "-m", "service", "--prot", "9000"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "python -m service: unknown option --prot; did you mean --port?\n"


def test_help_and_mistakes_do_not_load_the_server():
    program = """
import sys
from service import serve
assert serve.main(["--prot"]) == 2
print([name for name in ("uvicorn", "fastapi", "onnxruntime", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
