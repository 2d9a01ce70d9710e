"""Faulty settings are named before anything is loaded, and misspelled variables are noticed."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service import keys
from service.setting_checks import SHORT_NAME, allowed, faults, misspelled, value_fault
from service.settings import Settings
from tests.service import graphs

NAMES = [name.upper() for name in Settings.model_fields]

# Variables that these environments set, by their own documentation, with the names that look most like settings.
ORDINARY = {
    "shells": "HOME HOSTNAME HOSTTYPE HOST_NAME HOSTS LANG LOGNAME MACHTYPE OLDPWD OSTYPE PATH PWD SHLVL TERM USER",
    "platforms": "PORT0 PORTS PORT_8000 PORT1 HOST_IP HOST_PORT DYNO WEB_CONCURRENCY K_SERVICE K_REVISION DATABASE_URL",
    "kubernetes": "KUBERNETES_PORT KUBERNETES_PORT_443_TCP KUBERNETES_PORT_443_TCP_ADDR KUBERNETES_SERVICE_HOST "
    "KUBERNETES_SERVICE_PORT KUBERNETES_SERVICE_PORT_HTTPS DETECTOR_SERVICE_HOST DETECTOR_SERVICE_PORT DETECTOR_PORT "
    "METRICS_SERVICE_HOST METRICS_SERVICE_PORT METRICS_PORT_9090_TCP_ADDR METRICS_PORT_9090_TCP POD_NAME NODE_NAME",
    "conda": "BUILD CONDA_BACKUP_HOST CONDA_BUILD_SYSROOT CONDA_DEFAULT_ENV CONDA_EXE CONDA_PREFIX "
    "CONDA_PYTHON_EXE CONDA_SHLVL CONDA_TOOLCHAIN_BUILD CONDA_TOOLCHAIN_HOST CC CFLAGS CMAKE_ARGS LDFLAGS",
    "github actions": "CI ACTIONS_CACHE_URL ACTIONS_RUNTIME_URL GITHUB_ACTION GITHUB_ACTIONS GITHUB_ACTOR GITHUB_ENV "
    "GITHUB_JOB GITHUB_REF GITHUB_SHA GITHUB_TOKEN GITHUB_WORKSPACE ImageOS ImageVersion RUNNER_ARCH RUNNER_DEBUG "
    "RUNNER_NAME RUNNER_OS RUNNER_TEMP RUNNER_TOOL_CACHE",
    "docker": "DOCKER_HOST DOCKER_CONFIG GPG_KEY PYTHON_VERSION PYTHON_SHA256 PYTHONUNBUFFERED NVIDIA_VISIBLE_DEVICES "
    "NVIDIA_DRIVER_CAPABILITIES COMPOSE_PROJECT_NAME container",
    "systemd": "CREDENTIALS_DIRECTORY INVOCATION_ID JOURNAL_STREAM LISTEN_FDS LISTEN_PID MAINPID MANAGERPID "
    "NOTIFY_SOCKET RUNTIME_DIRECTORY SERVICE_RESULT STATE_DIRECTORY SYSTEMD_EXEC_PID WATCHDOG_USEC XDG_RUNTIME_DIR",
    "libraries": "CUDA_VISIBLE_DEVICES CUDA_VERSION GOMP_CPU_AFFINITY MKL_NUM_THREADS OMP_NUM_THREADS OMP_WAIT_POLICY "
    "OPENBLAS_NUM_THREADS OTEL_EXPORTER_OTLP_ENDPOINT OTEL_SERVICE_NAME TZ http_proxy HTTPS_PROXY NO_PROXY "
    "UVICORN_HOST UVICORN_PORT UVICORN_LOG_LEVEL MALLOC_ARENA_MAX LD_PRELOAD REAL_DATA_DIR",
}


@pytest.mark.parametrize("environment", ORDINARY)
def test_the_variables_of_ordinary_environments_are_not_taken_for_misspelled_settings(environment):
    assert list(misspelled(ORDINARY[environment].split())) == []


def test_the_settings_themselves_are_not_misspelled():
    assert list(misspelled(NAMES)) == []


@pytest.mark.contract("7.1")
@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("MODEL_STOR", "MODEL_STORE"),
        ("MODELSTORE", "MODEL_STORE"),
        ("MODEL_STORE_PATH", "MODEL_STORE"),
        ("API_KEY_FILE", "API_KEYS_FILE"),
        ("API_KEYS", "API_KEYS_FILE"),  # the last word is missing
        ("MODEL_POLL", "MODEL_POLL_SECONDS"),
        ("DEFUALT_MODEL", "DEFAULT_MODEL"),
        ("MAX_PIXEL", "MAX_PIXELS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("model_store", "MODEL_STORE"),
        ("port", "PORT"),
        ("PROT", "PORT"),
        ("PRT", "PORT"),
        ("HOSTT", "HOST"),
        ("HSOT", "HOST"),
        ("ALLOW_TF32", "PRECISION"),  # of an earlier release
    ],
)
def test_a_misspelled_variable_is_named_with_the_setting(variable, setting):
    assert list(misspelled([variable, "PATH"])) == [(variable, setting)]


@settings(deadline=None)
@given(st.data())
def test_a_long_name_with_one_letter_missing_is_noticed(data):
    name = data.draw(st.sampled_from([name for name in NAMES if len(name) > SHORT_NAME]))
    place = data.draw(st.integers(0, len(name) - 1))
    variable = name[:place] + name[place + 1 :]
    found = list(misspelled([variable]))
    assert [each for each, _ in found] == [variable]


def faults_of_values(**values):
    try:
        Settings(**values)
    except ValidationError as error:
        return [value_fault(each, set()) for each in error.errors()]
    return []


@pytest.mark.contract("7.1")
@pytest.mark.parametrize("value", ["\x1b[31mred\r\n", "-1", "nan", "1e999", "9" * 5000, "1,5", "20MB", "'1'", "\udcff"])
@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_fault_is_one_printable_line_in_words_of_our_own(monkeypatch, name, value):
    monkeypatch.setenv(name.upper(), value)
    for line in faults_of_values():
        assert line.startswith(f"{name.upper()}=")
        assert line.isprintable()
        assert len(line) < 300
        assert "Input should" not in line
        assert "must be " in line or "remove them" in line


def test_a_variable_of_kubernetes_is_recognised(monkeypatch):
    monkeypatch.setenv("METRICS_PORT", "tcp://10.0.0.1:9090")
    (line,) = faults_of_values()
    assert line.startswith("METRICS_PORT='tcp://10.0.0.1:9090': Kubernetes sets this variable")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("port", "a whole number, at least 0 and at most 65535"),
        ("max_in_flight", "a whole number, at least 1 and at most 1000000"),
        ("engines", "a whole number, at least 1 and at most 64"),
        ("drain_timeout", "a number, greater than 0 and at most 86400"),
        (
            "memory_budget",
            "a number of bytes, such as 1000000000, 800MB or 1.5GiB, at least 16777216 and at most 1099511627776",
        ),  # 16 x 2**20 and 2**40
        ("log_level", "one of debug, info, warning, error"),
        ("access_log", "1, true, yes or on, or else 0, false, no or off"),
    ],
)
def test_what_a_setting_takes_is_said_in_words(name, words):
    assert allowed(Settings.model_fields[name]) == words


def found(flags=(), **values):
    return list(faults(Settings(**values), flags))


@pytest.fixture
def store(tmp_path):
    graphs.publish(tmp_path / "model_store")
    return tmp_path / "model_store"


def test_good_settings_have_no_fault(store, tmp_path):
    (tmp_path / "keys").write_text(f"alice {keys.digest_of(keys.new())}\n")
    assert found(model_store=store, default_model="plain", api_keys_file=tmp_path / "keys", metrics_port=0) == []


def test_a_misspelled_model_store_is_named_with_its_neighbour(monkeypatch, store):
    monkeypatch.setenv("MODEL_STORE", "given")
    (line,) = found(model_store=store.with_name("model_stor"))
    assert line.endswith(f"model_stor': there is no such folder; did you mean {str(store)!r}?")
    assert line.startswith("MODEL_STORE='")


def test_a_model_store_that_is_a_file_is_named(store):
    file = store / "plain" / "1" / "model.json"
    (line,) = found({"model_store"}, model_store=file)
    assert line.startswith(f"--model-store '{str(file)[:40]}")  # a long value is cut
    assert line.endswith(": this is a file; set MODEL_STORE to the folder of your models")


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may read every folder")
def test_a_model_store_without_permission_is_named(store):
    store.chmod(0)
    (line,) = found(model_store=store)
    store.chmod(0o700)
    assert "cannot be read (permission denied)" in line


def test_a_default_that_is_not_in_the_store_is_named_with_the_models_there(store):
    (line,) = found({"default_model"}, model_store=store, default_model="nosuch")
    assert line == "--default-model 'nosuch': the model store has no such model; it has plain"


@pytest.mark.contract("4.5")
def test_a_default_version_that_is_not_in_the_store_is_named_with_the_versions_there(store):
    (line,) = found({"default_model"}, model_store=store, default_model="plain/9")
    assert line == "--default-model 'plain/9': the model store has no such version of plain; it has 1"
    assert found(model_store=store, default_model="plain/1") == []


@pytest.mark.parametrize(
    ("inside", "what"),
    [
        ("model_store/plain", "the folder of one model"),
        ("model_store/plain/1", "the folder of one version"),
        ("", "a folder above the model store"),
    ],
)
def test_a_model_store_that_is_set_too_high_or_too_low_is_named_with_the_right_folder(store, inside, what):
    (line,) = found(model_store=store.parent / inside)
    assert line.endswith(f": this is {what}; set it to {str(store)!r}")


def test_a_store_that_is_still_empty_is_not_a_fault(tmp_path):
    (tmp_path / "plain").mkdir()
    assert found(model_store=tmp_path) == []


def test_two_settings_that_contradict_each_other_are_named():
    assert faults_of_values(port="8000", metrics_port="8000") == [
        "METRICS_PORT='8000' (the default): must differ from PORT"
    ]
    assert faults_of_values(port="0", metrics_port="0") == []  # two free ports


@pytest.mark.parametrize(
    ("name", "value"), [("port", "8_000"), ("port", "8000.0"), ("request_timeout", "1_0"), ("memory_budget", "1_000MB")]
)
def test_a_number_must_be_written_in_plain_digits(name, value):
    (line,) = faults_of_values(**{name: value})
    assert ": must be a " in line


def test_a_faulty_file_of_keys_is_named_with_its_line(store, tmp_path):
    (tmp_path / "keys").write_text("# keys\nalice secret-of-alice\n")
    (line,) = found({"api_keys_file"}, model_store=store, api_keys_file=tmp_path / "keys")
    assert line.startswith(f"--api-keys-file {str(tmp_path / 'keys')!r}: line 2: write NAME sha256:DIGEST")
    assert "secret-of-alice" not in line
