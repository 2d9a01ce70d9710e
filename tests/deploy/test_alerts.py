"""Every alert fires when it should and is quiet when it should, by promtool's own evaluation of the rules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
HOURS = 3  # of simulated time; the rules compare shares, which are the same over longer windows
MINUTES = HOURS * 60

Series = dict[str, str]


def requests(status: int, per_minute: float, route: str = "/detect") -> Series:
    labels = f'job="detector", instance="a", route="{route}", status="{status}"'
    return {f"detector_request_seconds_count{{{labels}}}": f"0+{per_minute}x{MINUTES}"}


def in_time(per_minute: float, of: float) -> Series:
    """Answered requests, of which a part took at most half a second."""
    labels = 'job="detector", instance="a", route="/detect", status="200", le="0.5"'
    return requests(200, of) | {f"detector_request_seconds_bucket{{{labels}}}": f"0+{per_minute}x{MINUTES}"}


def replicas(name: str, *values: float, labels: str = "") -> Series:
    """A gauge of several replicas."""
    return {
        f'{name}{{job="detector", instance="{number}"{labels}}}': f"{value}x{MINUTES}"
        for number, value in enumerate(values)
    }


def info(*hashes: str) -> Series:
    """Replicas that are ready and serve version 1 of the model m with these hashes; "" serves no version."""
    series = replicas("detector_ready", *[1] * len(hashes))
    for number, sha256 in enumerate(hashes):
        if sha256:
            labels = f'job="detector", instance="{number}", model="m", version="1", sha256="{sha256}"'
            series[f"detector_model_info{{{labels}}}"] = f"1x{MINUTES}"
    return series


def gpu(used: float) -> Series:
    return replicas("detector_gpu_memory_bytes", used, labels=', gpu="0", kind="used"') | replicas(
        "detector_gpu_memory_bytes", 100, labels=', gpu="0", kind="total"'
    )


def memory_ran_out(per_minute: float) -> Series:
    name = 'detector_out_of_memory_total{job="detector", instance="a", device="cuda:0"}'
    return {name: f"0+{per_minute}x{MINUTES}"}


# The series with which an alert fires, and those with which it does not.
CASES: dict[str, tuple[Series, Series]] = {
    "DetectorFailsFast": (requests(200, 980) | requests(500, 20), requests(200, 995) | requests(500, 5)),
    "DetectorFailsSlowly": (requests(200, 9980) | requests(504, 20), requests(200, 9995) | requests(504, 5)),
    "DetectorIsLateFast": (in_time(800, 1000), in_time(950, 1000)),
    "DetectorIsLateSlowly": (in_time(980, 1000), in_time(995, 1000)),
    "DetectorRefusesRequests": (requests(200, 98) | requests(429, 2), requests(200, 995) | requests(429, 5)),
    "DetectorIsSaturated": (
        replicas("detector_expected_wait_seconds", 2.5, 0),
        replicas("detector_expected_wait_seconds", 1.5, 0),
    ),
    "DetectorIsOutOfMemory": (memory_ran_out(0.1), memory_ran_out(0)),
    "DetectorGpuMemoryIsFull": (gpu(97), gpu(90)),
    "DetectorHasNoReplica": (replicas("detector_ready", 0, 0), replicas("detector_ready", 1, 0)),
    "DetectorReplicaIsDown": (replicas("up", 1, 0), replicas("up", 1, 1)),
    "DetectorReplicaIsNotReady": (
        replicas("detector_ready", 1, 0) | replicas("detector_draining_seconds", 0, 0),
        replicas("detector_ready", 1, 0) | replicas("detector_draining_seconds", 0, 30),
    ),
    "DetectorDrainsTooLong": (replicas("detector_draining_seconds", 90), replicas("detector_draining_seconds", 40)),
    "DetectorReplicaIsOutOfStep": (info("aa", "bb"), info("aa", "aa")),
    "DetectorRefusesAModel": (replicas("detector_refused_versions", 1), replicas("detector_refused_versions", 0)),
    "DetectorModelStoreIsFaulty": (
        replicas("detector_model_store_fault", 1),
        replicas("detector_model_store_fault", 0),
    ),
    "DetectorLosesLogLines": (replicas("detector_log_lines_lost", 3), replicas("detector_log_lines_lost", 0)),
}  # fmt: skip


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    if not (program := shutil.which("promtool")):
        pytest.skip("promtool is not installed (it is in Debian's package prometheus)")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def firing(alert: str, series: Series, folder: Path, expected: int) -> subprocess.CompletedProcess[str]:
    """Checks with promtool that the alert fires this many times after HOURS."""
    query = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    test: dict[str, Any] = {
        "rule_files": [str(PROMETHEUS / "rules.yml"), str(PROMETHEUS / "alerts.yml")],
        "evaluation_interval": "5m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": query, "eval_time": f"{HOURS}h", "exp_samples": [{"labels": "{}", "value": expected}]}
                ],
            }
        ],
    }
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump(test))
    return promtool("test", "rules", file)


def test_promtool_accepts_the_rules():
    run = promtool("check", "rules", PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml")
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_accepts_the_configuration():
    run = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.contract("8.3")
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_should_and_only_then(alert, tmp_path):
    for series, expected in zip(CASES[alert], (1, 0), strict=True):
        run = firing(alert, series, tmp_path, expected)
        assert run.returncode == 0, f"{alert} should fire {expected} times:\n{run.stdout}{run.stderr}"


def test_a_version_that_one_replica_lacks_is_out_of_step(tmp_path):
    run = firing("DetectorReplicaIsOutOfStep", info("aa", "aa", ""), tmp_path, 1)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.contract("8.3")
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_to_do(alert):
    annotations = ALERTS[alert]["annotations"]
    assert {"summary", "runbook"} <= annotations.keys()
    assert ALERTS[alert]["labels"]["severity"] in ("page", "ticket")
