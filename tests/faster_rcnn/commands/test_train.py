"""`faster-rcnn train`: runs that begin, are resumed and published, and options that are refused before any work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faster_rcnn.commands.conftest import Done

Run = Callable[..., Done]
SMALL = ("--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run(
        "train", "--data", "shapes", "--backbone", "compact", "--out", folder, "--iterations", 3, "--batch-size", 2,
        "--anchor-scales", 32, 64, 128, "--min-size", 96, "--max-size", 192,
        "--validation-images", 4, "--validate-every", 3, *SMALL,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "AP50" in done.out
    return folder


def written(folder: Path, run: Run, images: int, splits: tuple[str, ...] = ("train", "val")) -> str:
    """Generated images on disk, as --data takes them."""
    for split in splits:
        done = run("shapes", "--out", folder, "--split", split, "--limit-images", images)
        assert done.code == 0, done.err
    return f"coco:{folder}"


def test_a_run_records_how_it_was_made(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["command"].startswith("scripts/train.py --data shapes")
    assert record["options"]["iterations"] == 3
    assert record["options"]["optimiser"] == "adamw"
    assert record["options"]["validation_pictures"] == 4
    assert record["seconds"] > 0
    assert {"python", "torch", "torchvision"} <= set(record["versions"])


def test_a_run_is_not_overwritten_and_a_finished_one_can_only_be_lengthened(trained: Path, run: Run) -> None:
    again = run("train", "--data", "shapes", "--out", trained)
    assert again.refusal.endswith("holds a run already; add --resume to go on with it, or choose another --out")
    changed = run("train", "--out", trained, "--resume", "--batch-size", 4, "--seed", 1)
    assert changed.refusal.endswith("goes on with the run's own options; leave out --batch-size, --seed")
    before = (trained / "run.json").read_text()
    assert "can only be raised" in run("train", "--out", trained, "--resume", "--iterations", 2).refusal
    assert (trained / "run.json").read_text() == before
    resumed = run("train", "--out", trained, "--resume")
    assert "has done its 3 iterations; raise --iterations" in resumed.err.splitlines()[-1]
    further = run("train", "--out", trained, "--resume", "--iterations", 4)
    assert further.code == 0, further.err
    record = json.loads((trained / "run.json").read_text())
    assert record["options"]["iterations"] == 4
    assert record["resumed"] == [f"scripts/train.py --out {trained} --resume --iterations 4"]
    assert len((trained / "losses.csv").read_text().splitlines()) == 1 + 4


def test_a_run_is_published_and_both_are_measured(trained: Path, tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    published = run("export", trained, "--name", "tiny", "--store", store, "--limit-images", 4, "--detections", 7)
    assert published.code == 0, published.err
    model = store / "tiny" / "1"
    card = json.loads((model / "model.json").read_text())
    assert card["verification"]["to_alone"]["unmatched"] == 0
    assert card["metrics"]["shapes/test"]["pictures"] == 4
    assert card["training"]["command"].startswith("scripts/train.py")
    assert card["detector"]["anchor_scales"] == [32, 64, 128]
    assert card["detector"]["detections"]["detections"] == 7
    # measured on the test split, but the threshold is chosen on the validation split; after three iterations there is
    # nothing to choose from
    choice = card["score_threshold_choice"]
    assert (choice["rule"], choice["data"], choice["images"]) == ("assumed", "shapes/val", 4)
    assert "score threshold 0.5: assumed, because the model finds no object on shapes/val (4 images" in published.out
    assert "warning: the model finds none of the" in published.out
    in_pytorch = run("evaluate", trained, "--split", "test", "--limit-images", 4)
    few = ("--data", "shapes", "--split", "test", "--pictures", 4)  # the former name of --limit-images
    in_onnx = run("evaluate", model, *few, "--out", tmp_path)
    for done, metrics in (
        (in_pytorch, trained / "evaluation-test" / "metrics.json"),
        (in_onnx, tmp_path / "metrics.json"),
    ):
        assert done.code == 0, done.err
        measured = json.loads(metrics.read_text())
        assert measured["pictures"] == 4
        assert measured["AP"] is not None
    assert "the one that the model is served with" in in_onnx.out
    assert json.loads((tmp_path / "metrics.json").read_text())["score_threshold"] == 0.5
    assert json.loads((tmp_path / "metrics.json").read_text())["AP50"] == card["metrics"]["shapes/test"]["AP50"]


def test_epochs_are_passes_over_the_training_images(tmp_path: Path, run: Run) -> None:
    data = written(tmp_path, run, images=5)
    out = tmp_path / "run"
    options = ("--batch-size", 2, "--min-size", 96, "--validation-images", 1, *SMALL)
    done = run("train", "--data", data, "--out", out, "--epochs", 1, *options)
    assert done.code == 0, done.err
    assert json.loads((out / "run.json").read_text())["options"]["iterations"] == 3  # 5 images / 2 per batch = 2.5


def test_a_broken_image_is_found_before_training(tmp_path: Path, run: Run) -> None:
    data = written(tmp_path, run, images=4, splits=("train",))
    document = (tmp_path / "annotations" / "train.json").read_text()
    (tmp_path / "annotations" / "val.json").write_text(document)
    (tmp_path / "train" / "000002.png").write_bytes(b"no image")
    out = tmp_path / "run"
    command = ("train", "--data", data, "--out", out, "--iterations", 1, "--batch-size", 2, *SMALL)
    done = run(*command)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "000002.png" in last
    assert "--skip-bad-boxes" in last
    assert not out.exists()
    without = run(*command, "--skip-bad-boxes", "--validation-images", 1, "--min-size", 96)
    assert without.code == 0, without.err
    assert (out / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--schedule", "fast-rcnn"), "--proposals SOURCE and --schedule fast-rcnn belong together"),
        (("--proposals", "sliding-window"), "--proposals SOURCE and --schedule fast-rcnn belong together"),
        (
            ("--schedule", "fast-rcnn", "--proposals", "magic"),
            "is not a source of proposals; choose one of: sliding-window",
        ),
        (("--schedule", "fast-rcnn", "--proposals", "no.npz"), "no.npz does not exist"),
        (("--step-iterations", "1", "1", "1", "1"), "belongs to --schedule alternating"),
        (("--target-normalisation", "measured"), "needs proposals that do not change during training"),
        (("--backbone", "compact", "--weights", "imagenet"), "none"),
        (("--backbone", "resnet50", "--weights", "no.pth"), "no.pth"),
        (("--trainable-from", "conv9_9"), "has no stage 'conv9_9'"),
        (("--batch-size", "3", "--accumulate", "2"), "choose another --batch-size or --accumulate"),
        (("--backbone", "resnet50_fpn", "--weights", "none", "--anchor-scales", "32", "64"), "scale"),
        (("--anchor-ratios", "0"), "0 is not above 0"),
        (("--anchor-ratios", "wide"), "'wide' is not a number"),
        (("--rois", "1.5"), "'1.5' is not a whole number"),
        (("--proposal-nms", "1.5"), "1.5 is not between 0 and 1"),
        (("--device", "gpu"), "gpu cannot be used on this machine"),
        (("--min-size", "600", "--max-size", "300"), "--min-size 600 exceeds --max-size 300"),
        (("--epochs", "3"), "--epochs and --iterations both set the length of the run; give one"),
        (("--learning-rte", "3"), "unknown option --learning-rte; did you mean --learning-rate?"),
        (("--optimizer", "sdg"), "invalid choice: 'sdg' (choose from"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path: Path, run: Run, options: tuple[str, ...], complaint: str
) -> None:
    done = run("train", "--data", "shapes", "--iterations", 1, "--out", tmp_path / "run", *options)
    assert done.code in (1, 2)
    assert complaint in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--out", "nowhere", "--resume"), "there is nothing to resume; leave out --resume"),
        (("--out", "nowhere", "--data", "voc2012"), "unknown kind, and not a folder or file that exists"),
        (("--out", "nowhere"), "--data is missing; name annotated images: a folder, a zip file or"),
        (("--data", "shapes"), "--out is missing; name the folder of the run"),
        (("--data", "shapes", "--out", "nowhere", "--epochs", "3"), "has no epochs; give --iterations"),
        (("--out", "nowhere", "--resume", "--epochs", "3"), "to train one further, give --iterations"),
        (("--data", "coco:nowhere", "--out", "pyproject.toml"), "pyproject.toml is a file; name a folder"),
    ],
)
def test_a_mistake_prints_one_line_that_says_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert complaint in run("train", *options).refusal


def test_a_run_is_not_resumed_on_other_annotations(tmp_path: Path, run: Run) -> None:
    """Classes are numbered by the annotations: others would silently shift what has been learned."""
    data = written(tmp_path, run, images=4)
    out = tmp_path / "run"
    sizes = ("--iterations", 2, "--batch-size", 2, "--min-size", 96)
    begun = run("train", "--data", data, "--out", out, *sizes, *SMALL)
    assert begun.code == 0, begun.err
    file = tmp_path / "annotations" / "train.json"
    document = json.loads(file.read_text())
    document["annotations"].pop()
    file.write_text(json.dumps(document))
    resumed = run("train", "--out", out, "--resume", "--iterations", 3)
    assert resumed.code == 1
    assert "are not those that the run began with" in resumed.err.splitlines()[-1]
    document["categories"].append({"id": 99, "name": "another"})
    document["annotations"][-1]["category_id"] = 99
    file.write_text(json.dumps(document))
    resumed = run("train", "--out", out, "--resume", "--iterations", 3)
    assert resumed.code == 1
    assert "another" in resumed.err.splitlines()[-1]


def test_data_without_objects_is_refused(tmp_path: Path, run: Run) -> None:
    data = written(tmp_path, run, images=2)
    file = tmp_path / "annotations" / "train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    done = run("train", "--data", data, "--out", tmp_path / "run", "--iterations", 1, *SMALL)
    assert done.code == 1
    assert "has no objects to learn from" in done.err.splitlines()[-1]


@pytest.mark.contract("6.14")
def test_changed_images_can_be_accepted_only_on_resuming(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run("train", "--data", "shapes", "--out", tmp_path / "run", "--accept-changed-images")
    assert "--accept-changed-images belongs to --resume; leave it out" in done.refusal


@pytest.mark.contract("6.15")
def test_the_same_command_line_begins_goes_on_and_finds_the_run_finished(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    words = (
        "train", "--data", "shapes", "--out", out, "--resume", "auto", "--batch-size", 2, "--learning-rate", 0.001,
        "--min-size", 96, "--max-size", 192, "--validation-images", 2, *SMALL,
    )  # fmt: skip
    begun = run(*words, "--epochs", 2)
    assert begun.refusal.endswith("--data shapes never ends, so it has no epochs; give --iterations")
    assert run(*words, "--iterations", 2).code == 0
    again = run(*words, "--iterations", 2)
    assert again.code == 0
    assert again.out == f"{out} has done its 2 iterations, so nothing is left to do\n"
    record = json.loads((out / "run.json").read_text())
    assert "resumed" not in record
    assert run(*words, "--iterations", 3).code == 0  # as --resume --iterations 3
    assert json.loads((out / "run.json").read_text())["options"]["iterations"] == 3
    other = run(*words, "--iterations", 3, "--seed", 7)
    assert other.refusal.endswith("--resume goes on with the run's own options; leave out --seed")
    assert run(*words, "--iterations", 3, "--seed", 0).code == 0  # the default, and so the run's own


@pytest.mark.contract("6.15")
def test_what_a_later_command_has_changed_stays_when_the_first_one_is_repeated(tmp_path: Path, run: Run) -> None:
    """A scheduler repeats the command with which the run began, after its rate was lowered by hand."""
    out = tmp_path / "run"
    words = (
        "train", "--data", "shapes", "--out", out, "--resume", "auto", "--batch-size", 2, "--learning-rate", 0.001,
        "--min-size", 96, "--max-size", 192, "--validation-images", 2, "--iterations", 1, *SMALL,
    )  # fmt: skip
    assert run(*words).code == 0
    assert run("train", "--out", out, "--resume", "--iterations", 2, "--learning-rate", 0.0005, *SMALL[2:]).code == 0
    assert run(*words).out == f"{out} has done its 2 iterations, so nothing is left to do\n"
    assert json.loads((out / "run.json").read_text())["options"]["learning_rate"] == 0.0005
