"""The files in deploy/ray, and the arguments of the application. No cluster runs here."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.readiness import Readiness
from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
SERVICE, MONITOR = yaml.safe_load_all((FOLDER / "rayservice.yaml").read_text())
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
PODS = [CLUSTER["headGroupSpec"]["template"], CLUSTER["workerGroupSpecs"][0]["template"]]
CONFIGURATIONS = [
    yaml.safe_load((FOLDER / "serve.yaml").read_text()),
    yaml.safe_load(SERVICE["spec"]["serveConfigV2"]),
]


def module() -> Any:
    """The module to test. Skips the test where ray is not installed."""
    pytest.importorskip("ray.serve", reason="ray is not installed; it is in the extra ray")
    from service import ray_serve

    return ray_serve


@pytest.mark.parametrize("pod", PODS)
def test_the_pods_are_valid(pod, tmp_path):
    program = shutil.which("kubernetes-validate", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("kubernetes-validate is not installed; it is in the extra dev")
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}} | pod))
    run = subprocess.run([program, "--strict", str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_pod_holds_one_replica_and_outlives_its_drain():
    (application,) = CONFIGURATIONS[1]["applications"]
    (group,) = CLUSTER["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) == application["args"]["cpus"]
    assert group["maxReplicas"] == application["args"]["max_replicas"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports[MONITOR["spec"]["podMetricsEndpoints"][0]["port"]] == application["args"]["metrics_port"]
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 30 + Settings().drain_timeout + 5


def test_every_machine_has_the_same_proxy():
    for pod in PODS:
        (container,) = pod["spec"]["containers"]
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_serve_accepts_the_files(configuration):
    ray_serve = module()
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(configuration)
    (application,) = configuration["applications"]
    assert application["import_path"] == f"{ray_serve.__name__}:{ray_serve.app.__name__}"
    ray_serve.app(application["args"])


@pytest.mark.contract("8.4")
@pytest.mark.parametrize(
    ("args", "fault"),
    [
        ({"modle_store": "x"}, "unknown argument modle_store; did you mean model_store?"),
        ({"replicas": 0}, "replicas=0: must be a whole number, at least 1"),
        ({"gpus": "many"}, "gpus=many: must be a number, at least 0"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas=2: must be at least replicas, 3"),
        ({"max_in_flight": "0"}, "max_in_flight='0': must be a whole number, at least 1 and at most 1000000"),
        ({"port": 80}, "port has no effect under Ray Serve: http_options say where the proxy listens"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(args, fault):
    ray_serve = module()
    with pytest.raises(ray_serve.ArgumentError) as raised:
        ray_serve.app(args)
    assert str(raised.value) == fault


@pytest.mark.contract("8.4")
def test_serve_admits_more_than_the_service():
    """The service refuses with its own words. Serve would refuse or delay without them."""
    ray_serve = module()
    for places in (1, 128, 100_000):
        made = ray_serve.deployment(ray_serve.Scale(replicas=2), Settings(max_in_flight=places))
        assert made.max_ongoing_requests >= max(4096, 4 * places)
        assert made.num_replicas == 2
        assert made.max_queued_requests == -1  # no limit


def test_settings_come_from_arguments_then_from_variables(monkeypatch, tmp_path):
    ray_serve = module()
    monkeypatch.setenv("MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("REQUEST_TIMEOUT", "8")
    monkeypatch.setenv("PORT", "9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    args = {"max_in_flight": 6, "access_log": True, "model_store": "models", "cpus": 3}
    variables = ray_serve.variables(args, ray_serve.read_settings(args), ray_serve.read_scale(args))
    expected = {"MAX_IN_FLIGHT": "6", "REQUEST_TIMEOUT": "8", "ACCESS_LOG": "true", "ENGINE_WORKERS": "3"}
    assert expected.items() <= variables.items()
    assert variables["MODEL_STORE"] == str(tmp_path / "models")  # replicas run in another folder
    assert "PORT" not in variables


@pytest.mark.contract("8.4")
def test_the_first_check_of_health_waits_for_the_models_and_a_failure_ends_it():
    ray_serve = module()

    async def scenario() -> None:
        readiness = Readiness()
        check = asyncio.create_task(ray_serve.Health(readiness).check())
        await asyncio.wait([check], timeout=3 * ray_serve.READY_LOOP_SECONDS)
        assert not check.done()
        readiness.fail("no model in the store can be served")
        with pytest.raises(ray_serve.ReplicaFailedError, match="no model in the store can be served"):
            await check

    asyncio.run(scenario())
