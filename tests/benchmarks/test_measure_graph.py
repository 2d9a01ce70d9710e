"""`faster-rcnn benchmark graph`, run through scripts/benchmark.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import command

ROOT = Path(__file__).parents[2]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", "graph", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_published_model_is_measured_with_its_stages_and_a_plot(tmp_path: Path) -> None:
    done = run("--batches", 1, 2, "--seconds", 0.02, "--threads", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "benchmark.md").read_text()
    assert text.strip() in done.stdout
    rows = [line for line in text.splitlines() if line.startswith("| ours")]
    assert len(rows) == 6  # at once, one by one, proposals only; at two N
    assert "| RoI pooling and head" in text
    assert "| decode to boxes" in text
    assert "1 threads" in text
    with Image.open(tmp_path / "benchmark.png") as plot:
        assert plot.width > 1000


def test_a_serving_installation_measures_without_torch_onnx_or_a_progress_bar(tmp_path: Path) -> None:
    for absent in ("torch", "torchvision", "onnx", "matplotlib", "tqdm"):
        (tmp_path / f"{absent}.py").write_text(f"raise ImportError('not here', name={absent!r})\n")
    done = run("--batches", 1, "--seconds", 0.02, "--threads", 1, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Stages: not measured, onnx is not installed; scripts/bootstrap dev installs it." in done.stdout
    assert "| decode to boxes" in done.stdout
    refused = run("--torchvision", "fasterrcnn_resnet50_fpn_v2", PYTHONPATH=str(tmp_path))
    assert "is not installed; scripts/bootstrap dev installs what --torchvision and --out need" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--weights", "COCO_V1"), "--weights is for --torchvision; leave it out"),
        (("model_store/shapes/1", "--precision", "fp16"), "--precision is for a graph that is exported here"),
        (("--batches", "0"), "0 is not at least 1"),
    ],
)
def test_a_contradiction_ends_with_one_line(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = command.main(["graph", *arguments])
    except SystemExit as end:  # refused by the parser
        code = int(end.code or 0)
    assert code != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
