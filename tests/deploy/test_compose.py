"""deploy/compose.scale.yml: accepted by compose, limited, and in agreement with the settings and with HAProxy."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "compose.scale.yml"
COMPOSE = yaml.safe_load(FILE.read_text())
MONITORING = yaml.safe_load((FILE.parent / "compose.monitoring.yml").read_text())
CONTAINERS = {name: MONITORING["services"].get(name, one) for name, one in COMPOSE["services"].items()}
SETTINGS = {name.upper() for name in Settings.model_fields}
REPLICAS = {name: one for name, one in COMPOSE["services"].items() if one.get("profiles") in (["cpu"], ["gpu"])}


def test_compose_accepts_the_file():
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            break
    else:
        pytest.skip("neither docker compose nor docker-compose is installed")
    profiles = [f"--profile={name}" for name in ("cpu", "gpu", "monitoring")]
    run = subprocess.run([*command, "-f", FILE, *profiles, "config", "--quiet"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("service", CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_has_limits_and_no_rights(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"]
    assert all(each.endswith(":ro") or each.split(":")[0] in COMPOSE["volumes"] for each in service["volumes"])
    files = [each.split(":")[0] for each in service["volumes"] if each.startswith(".")]
    assert all((FILE.parent / each).exists() for each in files)
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("replica", REPLICAS.values(), ids=REPLICAS)
def test_a_replica_drains_before_it_is_killed_and_trusts_the_balancer(replica):
    settings = Settings(**{name.lower(): value for name, value in replica["environment"].items()})
    assert set(replica["environment"]) <= SETTINGS
    assert float(replica["stop_grace_period"].removesuffix("s")) > settings.shutdown_grace + settings.drain_timeout + 3
    (subnet,) = COMPOSE["networks"]["replicas"]["ipam"]["config"]
    assert ipaddress.ip_network(settings.trusted_proxies) == ipaddress.ip_network(subnet["subnet"])
    name = COMPOSE["services"]["balancer"]["environment"]["REPLICAS"].split(":")[0]
    assert name in replica["networks"]["replicas"]["aliases"]


def test_each_gpu_has_a_replica_of_its_own():
    devices = [
        one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for one in REPLICAS.values()
        if one["profiles"] == ["gpu"]
    ]
    assert devices == [[str(index)] for index in range(len(devices))]
