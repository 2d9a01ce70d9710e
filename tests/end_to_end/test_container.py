"""The Dockerfile and docker-compose.yml: linted, limited, and in agreement with the settings. Nothing is built here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SETTINGS = {name.upper() for name in Settings.model_fields}
# Variables that others than the service read.
OTHERS = {"PYTHONUNBUFFERED", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}


SERVICES = {name: one for name, one in COMPOSE["services"].items() if "build" in one}


def services():
    return pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("hadolint is not installed; it is in the extra dev")
    run = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_compose_accepts_the_file():
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            break
    else:
        pytest.skip("neither docker compose nor docker-compose is installed")
    run = subprocess.run(
        [*command, "--profile", "cpu", "--profile", "monitoring", "config", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@services()
def test_a_container_has_limits_and_no_rights(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"]  # equal, so that no swap is used
    assert service["pids_limit"] >= 512
    assert service["ulimits"] == {"nofile": 65536, "core": 0}
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert all("size=" in each for each in service["tmpfs"])
    assert all(each.endswith(":ro") for each in service["volumes"])
    assert "privileged" not in service


@services()
def test_a_container_answers_only_this_machine_unless_asked(service):
    assert service["ports"] == ["${PUBLISH:-127.0.0.1}:${PORT:-8000}:8000"]


@services()
def test_the_supervisor_waits_until_the_service_has_drained(service):
    settings = Settings()
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > settings.shutdown_grace + settings.drain_timeout + 3


@services()
def test_compose_and_dockerfile_name_only_settings_that_exist(service):
    assert set(service.get("environment", {})) <= SETTINGS
    variables = DOCKERFILE.split("\nENV ")[1].split("\n\n")[0]
    assert set(re.findall(r"^\s*(\w+)=", variables, re.MULTILINE)) <= SETTINGS | OTHERS


@services()
def test_the_arguments_of_the_build_exist(service):
    assert set(service["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_the_image_does_not_run_as_root():
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_the_image_contains_only_what_it_copies():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]}
    assert kept == copied


def test_the_health_check_tells_a_ready_service_from_one_that_is_not(server):
    _, *command = json.loads(DOCKERFILE.split("--start-period=60s \\\n    CMD ")[1].split("\n")[0])

    def check(port: int) -> int:
        environment = os.environ | {"PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=False).returncode

    assert check(server.address[1]) == 0
    assert check(9) == 1  # nothing listens there
