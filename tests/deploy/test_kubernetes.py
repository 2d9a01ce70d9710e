"""The Kubernetes manifests: valid by Kubernetes' own schemas, and in agreement with the settings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
SETTINGS = {name.upper() for name in Settings.model_fields}
BIN = Path(sys.executable).parent
HAPROXY_VARIABLES = {"REPLICAS", "LISTEN", "STATUS", "DNS", "NAMESPACE"}  # NAMESPACE is used in REPLICAS
KSERVE_VARIABLES = {"STORAGE_URI"}


def program(name: str) -> str:
    if not (found := shutil.which(name, path=str(BIN)) or shutil.which(name)):
        pytest.skip(f"{name} is not installed; it is in the extra dev")
    return found


def built(folder: Path) -> str:
    command = [program("kubectl"), "kustomize", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def documents(text: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


def validated(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "manifests.yaml"
    file.write_text(text)
    command = [program("kubernetes-validate"), "--strict", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=["cpu", "gpu"])
def overlay(request) -> str:
    return built(KUBERNETES / "overlays" / request.param)


def test_the_overlays_are_valid(overlay, tmp_path):
    run = validated(overlay, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_validator_finds_a_misspelt_field(overlay, tmp_path):
    run = validated(overlay.replace("failureThreshold", "failureTreshold"), tmp_path)
    assert run.returncode != 0


@pytest.mark.parametrize("component", ["autoscaling", "monitoring"])
def test_a_component_can_be_added(component, tmp_path):
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    kubernetes = tmp_path / "deploy" / "kubernetes"
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        "resources: [../deploy/kubernetes/overlays/cpu]\n"
        f"components: [../deploy/kubernetes/components/{component}]\n"
    )
    assert kubernetes.is_dir()
    found = documents(built(overlay))
    if component == "autoscaling":
        assert "replicas" not in found["Deployment", "replica"]["spec"]  # otherwise every apply would undo its work
        text = yaml.safe_dump(found["HorizontalPodAutoscaler", "replica"])
        run = validated(text, tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
    else:  # the operator's own kinds, for which Kubernetes has no schema
        monitor, labels = (
            found["ServiceMonitor", "replicas"]["spec"],
            found["Service", "replicas"]["metadata"]["labels"],
        )
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        assert labels[monitor["jobLabel"]] == "detector"  # the job that the alerts name


def containers(text: str) -> dict[str, Any]:
    return {
        name: one["spec"]["template"]["spec"] for (kind, name), one in documents(text).items() if kind == "Deployment"
    }


def test_every_variable_is_a_setting(overlay):
    pods = containers(overlay)
    (service,) = pods["replica"]["containers"]
    (balancer,) = pods["balancer"]["containers"]
    assert {each["name"] for each in service["env"]} <= SETTINGS
    assert {each["name"] for each in balancer["env"]} <= HAPROXY_VARIABLES
    kserve = yaml.safe_load((KUBERNETES / "kserve" / "inferenceservice.yaml").read_text())
    (predictor,) = kserve["spec"]["predictor"]["containers"]
    assert {each["name"] for each in predictor["env"]} <= SETTINGS | KSERVE_VARIABLES


def test_a_replica_is_not_killed_before_it_has_drained(overlay):
    pod = containers(overlay)["replica"]
    (service,) = pod["containers"]
    values = {each["name"].lower(): each["value"] for each in service["env"]}
    settings = Settings(**values)
    assert pod["terminationGracePeriodSeconds"] > settings.shutdown_grace + settings.drain_timeout + 3
    probe = service["readinessProbe"]
    noticed = probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])
    assert settings.shutdown_grace > noticed


def test_the_pods_have_few_rights(overlay):
    for pod in containers(overlay).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_the_disruption_budgets_and_services_select_pods(overlay):
    found = documents(overlay)
    labels = [one["spec"]["template"]["metadata"]["labels"] for (kind, _), one in found.items() if kind == "Deployment"]
    for (kind, name), one in found.items():
        selector = one.get("spec", {}).get("selector", {})
        wanted = selector.get("matchLabels", selector) if kind in ("Service", "PodDisruptionBudget") else None
        if wanted is not None:
            assert sum(wanted.items() <= each.items() for each in labels) == 1, (kind, name)
