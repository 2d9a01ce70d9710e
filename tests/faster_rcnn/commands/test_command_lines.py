"""The command lines as a person uses them: train, evaluate, export, evaluate again; and their errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / str(arguments[0])), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run(
        "train.py", "--data", "shapes", "--backbone", "compact", "--out", folder, "--iterations", 3, "--batch-size", 2,
        "--anchor-scales", 32, 64, 128,
        "--validation-pictures", 4, "--validate-every", 3, "--workers", 0, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout
    return folder


def test_a_run_says_how_it_was_made(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["command"].startswith("scripts/train.py --data shapes")
    assert record["options"]["iterations"] == 3
    assert record["options"]["optimiser"] == "adamw"
    assert record["seconds"] > 0
    assert {"python", "torch", "torchvision"} <= set(record["versions"])


def test_a_run_is_not_overwritten_and_a_finished_one_only_lengthened(trained: Path) -> None:
    again = run("train.py", "--out", trained)
    assert again.returncode != 0
    assert again.stderr.strip().endswith("holds a run already; add --resume to go on with it, or choose another --out")
    changed = run("train.py", "--out", trained, "--resume", "--batch-size", 4, "--seed", 1)
    assert changed.returncode != 0
    assert changed.stderr.strip().endswith("goes on with the run's own options; leave out --batch-size, --seed")
    before = (trained / "run.json").read_text()
    shorter = run("train.py", "--out", trained, "--resume", "--iterations", 2)
    assert shorter.returncode != 0
    assert "can only be raised" in shorter.stderr.splitlines()[-1]
    assert (trained / "run.json").read_text() == before
    resumed = run("train.py", "--out", trained, "--resume")
    assert resumed.returncode != 0
    assert "has done its 3 iterations; raise --iterations" in resumed.stderr.splitlines()[-1]
    further = run("train.py", "--out", trained, "--resume", "--iterations", 4)
    assert further.returncode == 0, further.stderr
    record = json.loads((trained / "run.json").read_text())
    assert record["options"]["iterations"] == 4
    assert record["resumed"] == [f"scripts/train.py --out {trained} --resume --iterations 4"]
    assert len((trained / "losses.csv").read_text().splitlines()) == 1 + 4


def test_a_run_is_published_and_both_are_measured(trained: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    published = run("export.py", trained, "--name", "tiny", "--store", store, "--pictures", 4)
    assert published.returncode == 0, published.stderr
    model = store / "tiny" / "1"
    card = json.loads((model / "model.json").read_text())
    assert card["verification"]["to_alone"]["unmatched"] == 0
    assert card["metrics"]["shapes/test"]["pictures"] == 4
    assert card["training"]["command"].startswith("scripts/train.py")
    assert card["detector"]["anchor_scales"] == [32, 64, 128]
    in_pytorch = run("evaluate.py", trained, "--split", "test", "--pictures", 4)
    in_onnx = run("evaluate.py", model, "--split", "test", "--pictures", 4, "--out", tmp_path)
    for done, metrics in (
        (in_pytorch, trained / "evaluation-test" / "metrics.json"),
        (in_onnx, tmp_path / "metrics.json"),
    ):
        assert done.returncode == 0, done.stderr
        measured = json.loads(metrics.read_text())
        assert measured["pictures"] == 4
        assert measured["AP"] is not None
    assert json.loads((tmp_path / "metrics.json").read_text())["AP50"] == card["metrics"]["shapes/test"]["AP50"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("train.py", "--out", "nowhere", "--resume"), "there is nothing to resume; leave out --resume"),
        (
            ("train.py", "--out", "nowhere", "--data", "voc2012"),
            "unknown kind; use shapes, coco:DIR or voc:DIR",
        ),
        (("evaluate.py", "nowhere"), "nowhere is not there; scripts/train.py --out nowhere writes it"),
        (("export.py", "nowhere", "--name", "x"), "nowhere is not there; scripts/train.py --out nowhere writes it"),
        (("benchmark.py", "graph", "nowhere"), "publish the model again"),
    ],
)
def test_a_mistake_ends_with_one_line_that_says_what_to_do(command: tuple[str, ...], complaint: str) -> None:
    done = run(*command)
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        "train.py",
        "check_data.py",
        "evaluate.py",
        "export.py",
        "propose.py",
        "compare.py",
        "benchmark.py",
        "write_shapes.py",
    ],
)
def test_help_shows_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"scripts/{command} " in done.stdout


def test_a_broken_image_is_found_before_training(tmp_path: Path) -> None:
    write = run("write_shapes.py", "--out", tmp_path, "--split", "train", "--pictures", 4)
    assert write.returncode == 0, write.stderr
    document = (tmp_path / "annotations" / "train.json").read_text()
    (tmp_path / "annotations" / "val.json").write_text(document)
    (tmp_path / "train" / "000002.png").write_bytes(b"no image")
    out = tmp_path / "run"
    command = ("train.py", "--data", f"coco:{tmp_path}", "--out", out, "--iterations", 1, "--batch-size", 2)
    done = run(*command)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "000002.png" in done.stderr.splitlines()[-1]
    assert "--skip-bad-boxes" in done.stderr.splitlines()[-1]
    assert not out.exists()
    without = run(*command, "--skip-bad-boxes", "--validation-pictures", 1, "--min-size", 96)
    assert without.returncode == 0, without.stderr
    assert (out / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--schedule", "fast-rcnn"), "--proposals SOURCE and --schedule fast-rcnn belong together"),
        (("--proposals", "sliding-window"), "--proposals SOURCE and --schedule fast-rcnn belong together"),
        (("--schedule", "fast-rcnn", "--proposals", "magic"), "'magic' is no source of proposals; there are:"),
        (("--schedule", "fast-rcnn", "--proposals", "no.npz"), "no.npz is not there"),
        (("--step-iterations", "1", "1", "1", "1"), "are those of --schedule alternating"),
        (("--target-normalisation", "measured"), "targets are measured on given proposals"),
        (("--backbone", "compact", "--weights", "imagenet"), "none"),
        (("--backbone", "resnet50", "--weights", "no.pth"), "no.pth"),
        (("--trainable-from", "conv9_9"), "has no stage 'conv9_9'"),
        (("--batch-size", "3", "--accumulate", "2"), "choose another --batch-size or --accumulate"),
        (("--backbone", "resnet50_fpn", "--weights", "none", "--anchor-scales", "32", "64"), "scale"),
        (("--anchor-ratios", "0"), "0 is not above 0"),
        (("--proposal-nms", "1.5"), "1.5 is not between 0 and 1"),
        (("--device", "gpu"), "gpu cannot be used on this machine"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    done = run("train.py", "--data", "shapes", "--iterations", 1, "--out", tmp_path / "run", *options)
    assert done.returncode != 0
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_other_annotations(tmp_path: Path) -> None:
    """Classes are numbered by the annotations: others would silently shift what has been learned."""
    for split in ("train", "val"):
        write = run("write_shapes.py", "--out", tmp_path, "--split", split, "--pictures", 4)
        assert write.returncode == 0, write.stderr
    out, data = tmp_path / "run", ("--data", f"coco:{tmp_path}")
    begun = run("train.py", *data, "--out", out, "--iterations", 2, "--batch-size", 2, "--min-size", 96)
    assert begun.returncode == 0, begun.stderr
    file = tmp_path / "annotations" / "train.json"
    document = json.loads(file.read_text())
    document["annotations"].pop()
    file.write_text(json.dumps(document))
    resumed = run("train.py", "--out", out, "--resume", "--iterations", 3)
    assert resumed.returncode != 0
    assert "are not those that the run began with" in resumed.stderr.splitlines()[-1]
    document["categories"].append({"id": 99, "name": "another"})
    file.write_text(json.dumps(document))
    resumed = run("train.py", "--out", out, "--resume", "--iterations", 3)
    assert resumed.returncode != 0
    assert "another" in resumed.stderr.splitlines()[-1]


def test_data_without_an_object_is_not_trained_on(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write = run("write_shapes.py", "--out", tmp_path, "--split", split, "--pictures", 2)
        assert write.returncode == 0, write.stderr
    file = tmp_path / "annotations" / "train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    done = run("train.py", "--data", f"coco:{tmp_path}", "--out", tmp_path / "run", "--iterations", 1)
    assert done.returncode != 0
    assert "has no object to learn from" in done.stderr.splitlines()[-1]
