"""`faster-rcnn benchmark gpu`: its rehearsal on the CPU, and the parts whose right answer can be computed by hand."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.gpu import subjects
from benchmarks.gpu.checks import CHECKS, NUMBERS, Check, chosen
from benchmarks.gpu.outcome import Finding, Outcome, Row, Status
from benchmarks.gpu.placement import copied_features
from benchmarks.gpu.report import HEAD, as_json, failed, report
from benchmarks.gpu.running import run_checks
from benchmarks.gpu.setup import LARGE, TINY, Setup
from benchmarks.gpu.stage_times import shares
from service.engine.providers import CPU, CUDA, choose

ROOT = Path(__file__).parents[2]
ALL = {f"C{number}" for number in range(1, 16)}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", "gpu", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_fifteen_checks_have_the_numbers_of_the_documentation():
    assert len(NUMBERS) == len(ALL)
    assert set(NUMBERS) == ALL
    explained = (ROOT / "docs/gpu.md").read_text()
    assert all(f"| {number} |" in explained for number in NUMBERS)
    assert [check.number for check in chosen(["C5", "C1"])] == ["C1", "C5"]


@pytest.mark.contract("6.17")
def test_the_rehearsal_runs_every_check_on_the_cpu(tmp_path: Path):
    done = run("--provider", "cpu", "--out", tmp_path)
    document = json.loads((tmp_path / "benchmark.json").read_text())
    faults = {check["number"]: check["finding"]["faults"] for check in document["checks"]}
    assert faults == {number: [] for number in NUMBERS}, done.stdout
    assert done.returncode == 0
    text = (tmp_path / "benchmark.md").read_text()
    assert text.strip() in done.stdout
    assert "says nothing of a GPU: 15 of 15 checks passed" in text
    figures = {check["number"]: check["finding"]["figures"] for check in document["checks"]}
    assert 0 < figures["C6"]["largest error, TF32 off"] < 1e-5
    assert figures["C13"]["lowered to"] < figures["C13"]["budget"]
    assert figures["C14"]["exit code"] == 1
    assert figures["C15"]["tiny"]["images/s"] > 0
    assert figures["C15"]["tiny"]["plain server images/s"] > 0
    measured = [row for check in document["checks"] for row in check["finding"]["rows"]]
    contenders = {row["options"] for row in measured}
    assert {"ours", "torchvision eager", "fixed shape", "against each image alone", "against PyTorch"} <= set(
        contenders
    )


def test_without_a_gpu_the_command_says_so_and_fails():
    if choose().provider == CUDA:
        pytest.skip("this machine has a GPU")
    done = run("--only", "C1")
    assert done.returncode == 1
    assert "CUDA cannot be used on this machine" in done.stderr


def test_a_package_needs_an_architecture(tmp_path: Path):
    done = run("--pack", tmp_path)
    assert done.returncode == 1
    assert "--pack and --architecture belong together" in done.stderr


@pytest.mark.contract("6.17")
def test_what_time_does_not_allow_is_not_run_and_counts_as_failed(tmp_path: Path):
    outcomes = list(run_checks(CHECKS, Setup(CPU, tmp_path), seconds=0.0))
    assert [one.status for one in outcomes] == [Status.NOT_RUN] * 15
    assert failed(outcomes) == list(NUMBERS)
    assert outcomes[0].finding.faults == ["not run: 0 of 0 s were left"]


@pytest.mark.contract("6.17")
def test_an_exception_fails_its_check_and_no_other(tmp_path: Path):
    broken = [Check("X", "broken", "", "no_such_module", "run", 1.0, aside) for aside in (True, False)]
    outcomes = list(run_checks([*broken, *chosen(["C6"])], Setup(CPU, tmp_path), seconds=300.0))
    assert [one.status for one in outcomes] == [Status.FAILED, Status.FAILED, Status.PASSED]
    assert all("no_such_module" in one.finding.faults[0] for one in outcomes[:2])


def outcome(number: str, status: Status, finding: Finding) -> Outcome:
    return Outcome(number, "title", "expected", status, 12.3, finding)


def test_a_report_has_a_row_for_each_check_and_each_measurement():
    # 7 images in 28 ms: 4 ms an image, 250 images a second
    row = Row("model/1", "fp16", "fixed shape", 7, (800, 1344), 0.028, {"NMS": 0.05, "Conv": 0.7}, 3 * 10**9, 0, 0.5)
    outcomes = [
        outcome("C1", Status.PASSED, Finding(rows=[row], figures={"inner": {"share": 0.5}, "unknown": None})),
        outcome("C2", Status.FAILED, Finding(["the fault"])),
    ]
    text = report(outcomes, "card", "580", "the note")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["C2", "title", "expected", "12", "FAILED"] in lines
    expected = ["card", "580", "model/1", "fp16", "fixed shape", "7", "800×1344", "28.00", "4.00", "250.0"]
    assert [*expected, "70%", "5%", "0%", "0%", "0%", "3000", "0", "50%"] in lines
    assert list(HEAD) in lines
    assert "  - inner: share 0.5\n  - unknown: –\n" in text
    assert "- C2 title: FAILED\n  - **the fault**\n" in text
    assert failed(outcomes) == ["C2"]
    document = json.loads(as_json(outcomes, "card", "580", "the note"))
    assert [check["status"] for check in document["checks"]] == ["passed", "FAILED"]
    assert replace(row, seconds=None).rate is None


def event(operator: str, begin: int, microseconds: int) -> dict[str, Any]:
    name = f"{operator}_kernel_time"
    return {"cat": "Node", "name": name, "ts": begin, "dur": microseconds, "args": {"op_name": operator}}


def test_shares_count_a_loop_once_and_leave_out_the_first_run():
    events = [
        {"name": "model_run", "ts": 0},
        event("Conv", 1, 9000),  # of the first run
        {"name": "model_run", "ts": 10_000},
        event("Conv", 10_001, 60),
        event("Loop", 10_100, 30),
        event("MatMul", 10_105, 20),  # within the loop
        event("MatMul", 10_200, 10),
    ]
    # 60 + 30 + 10 = 100 microseconds
    assert shares(events) == {"Conv": 0.6, "NMS": 0.3, "other": 0.1}


@pytest.mark.contract("1.5")
def test_copies_of_features_are_found_inside_loops_too_and_shapes_do_not_count():
    def graph(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        kinds = {f"{name}.features": [1, 64, 8, 8], f"{name}.shape": [4], f"{name}.condition": []}
        known = [helper.make_tensor_value_info(one, TensorProto.FLOAT, kind) for one, kind in kinds.items()]
        return helper.make_graph(nodes, name, [], [], value_info=known)

    def copy(name: str) -> onnx.NodeProto:
        return helper.make_node("MemcpyToHost", [name], [f"{name}.copy"])

    body = graph("body", copy("body.features"), copy("body.condition"))
    loop = helper.make_node("Loop", ["", ""], [], body=body)
    whole = graph("whole", copy("whole.features"), copy("whole.shape"), loop)
    assert copied_features(helper.make_model(whole)) == ["whole.features", "body.features"]


def test_every_weight_of_a_layer_has_one_of_two_values(tmp_path: Path):
    model = subjects.calibrated(subjects.unweighted(TINY))
    assert len(model.backbone[0].weight.unique()) == 2
    again = subjects.calibrated(subjects.unweighted(TINY))
    assert all(bool((one == other).all()) for one, other in zip(model.parameters(), again.parameters(), strict=True))


# --- the same checks on a GPU ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The models, exported into the folder that GPU_MODELS names, or into a temporary one."""
    if why := choose().why_cpu:
        pytest.skip(f"no usable GPU: {why}")
    models = Path(os.environ.get("GPU_MODELS") or tmp_path_factory.mktemp("models"))
    subjects.prepare(models, LARGE)
    return Setup(CUDA, models)


@pytest.mark.cuda
@pytest.mark.parametrize("check", CHECKS, ids=NUMBERS)
def test_on_a_gpu(check: Check, setup: Setup):
    [found] = run_checks([check], setup, seconds=2 * check.seconds)
    assert found.finding.faults == [], found.finding.figures
