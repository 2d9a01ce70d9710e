"""`faster-rcnn evaluate`: what is measured for a run, which proposals its head takes, and what cannot be measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from faster_rcnn.commands.evaluate import build_parser, evaluate, place_for_reports
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.detector.checkpoint import BEST, NAME, save_state
from faster_rcnn.proposal_sources.table import ProposalTable, ranked
from tests.faster_rcnn.commands.conftest import Done
from tests.faster_rcnn.lively import lively

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "model_store" / "shapes" / "1"
TWO_IMAGES = ("--limit-images", 2, "--show", 1, "--device", "cpu", "--workers", 1)


def measure(out: Path, *arguments: object) -> dict[str, Any]:
    """The metrics.json of two images."""
    evaluate(build_parser().parse_args([str(word) for word in (*arguments, *TWO_IMAGES, "--out", out)]))
    record: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return record


def trained(folder: Path, objective: str, **record: object) -> Path:
    folder.mkdir(parents=True)
    save_state(folder / NAME, lively("compact"), objective, 1)
    (folder / "run.json").write_text(json.dumps({"data": "shapes", **record}))
    return folder


def test_a_run_is_measured_by_its_best_checkpoint_on_its_own_data_and_leaves_a_report(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "rpn")
    save_state(folder / BEST, lively("compact"), "joint", 1)
    record = measure(tmp_path / "out", folder)
    assert (record["data"], record["pictures"]) == ("shapes/val", 2)
    assert (record["checkpoint"], record["iteration"]) == ("best", 1)
    assert "VOC_mAP" in record
    assert list(record["proposals"]) == ["100"]  # compact gives 100 proposals
    assert (tmp_path / "out" / "index.html").is_file()
    with pytest.raises(ValueError, match="only an RPN; measure it by --proposals rpn:"):
        measure(tmp_path / "out", folder, "--checkpoint", "last")


def test_a_head_is_measured_on_the_proposals_that_it_was_trained_on_or_on_others(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "fast-rcnn", proposals="sliding-window", proposal_limit=500)
    record = measure(tmp_path / "own", folder)
    assert list(record["proposals"]) == ["100", "300"]  # of 500 proposals, so there is no row for 1000
    images = Shapes("val")
    table = ProposalTable({images.name(index): ranked(images[index].boxes) for index in range(2)}, "the truth")
    table.save(tmp_path / "truth.npz")
    other = measure(tmp_path / "other", folder, "--proposals", tmp_path / "truth.npz")
    assert other["proposals_from"].endswith("truth.npz")
    assert [one["AR"] for one in other["proposals"].values()] == [1.0]


def test_a_head_cannot_be_measured_without_a_source_of_proposals(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "fast-rcnn")
    with pytest.raises(ValueError, match="makes no proposals of its own; name their source by --proposals"):
        measure(tmp_path / "out", folder)


def test_a_run_is_measured_on_the_split_that_it_was_validated_on(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "joint", val_split="test")
    assert measure(tmp_path / "own", folder)["data"] == "shapes/test"
    assert measure(tmp_path / "of_file", folder / NAME)["data"] == "shapes/test"
    assert measure(tmp_path / "named", folder, "--split", "val")["data"] == "shapes/val"


def test_an_image_that_training_left_out_as_broken_is_left_out_too(tmp_path: Path) -> None:
    names = ["broken.png", "whole.png"]
    Image.new("RGB", (80, 60)).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    lists = {
        "images": [{"id": place, "file_name": name, "width": 80, "height": 60} for place, name in enumerate(names)],
        "categories": [{"id": place, "name": name} for place, name in enumerate(Shapes.labels)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [10, 10, 30, 20]}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(lists))
    data = f"coco:{tmp_path}"
    strict = trained(tmp_path / "strict", "joint", data=data)
    with pytest.raises(ValueError, match=r"broken.png cannot be read: it is text, not an image.*--skip-bad-boxes"):
        measure(tmp_path / "out", strict)
    assert measure(tmp_path / "out", strict, "--skip-bad-boxes")["pictures"] == 1
    lenient = trained(tmp_path / "lenient", "joint", data=data, skip_bad_boxes=True)
    assert measure(tmp_path / "out", lenient)["pictures"] == 1


def test_a_step_of_alternating_training_is_measured_on_the_data_of_its_run_with_the_proposals_of_the_step_before(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    step = trained(folder / "2-fast-rcnn", "fast-rcnn")
    (step / "run.json").rename(folder / "run.json")
    (folder / "run.json").write_text(json.dumps({"data": "shapes", "val_split": "test", "schedule": "alternating"}))
    refusal = rf"saved proposals only for its validation split; name their source, as --proposals rpn:{folder}/1-rpn"
    with pytest.raises(ValueError, match=refusal):
        measure(tmp_path / "out", step)
    images = Shapes("test")
    table = ProposalTable({images.name(index): ranked(images[index].boxes) for index in range(2)}, "the truth")
    (folder / "1-rpn").mkdir()
    table.save(folder / "1-rpn" / "proposals-val.npz")
    record = measure(tmp_path / "out", step)
    assert record["data"] == "shapes/test"
    assert record["proposals_from"] == str(folder / "1-rpn" / "proposals-val.npz")
    assert [one["AR"] for one in record["proposals"].values()] == [1.0]
    with pytest.raises(ValueError, match=refusal):
        measure(tmp_path / "out", step, "--split", "val")


def test_sources_are_measured_without_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = f"rpn:{trained(tmp_path / 'run', 'rpn')}"
    given = ("--data", "shapes", "--proposals", "sliding-window", "--proposals", network)
    record = measure(tmp_path / "out", *given)
    assert list(record["sources"]) == ["sliding-window", network]
    assert all(list(one["by_number"]) == ["100", "300", "1000", "2000"] for one in record["sources"].values())
    assert "| sliding-window | 100 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "name a RUN or MODEL_DIR, or a source by --proposals"),
        (
            (MODEL, "--data", "shapes", "--proposals", "sliding-window"),
            "makes its own proposals; leave out --proposals",
        ),
        (("--data", "shapes", "--proposals", "magic"), "is not a source of proposals; choose one of: sliding-window"),
        ((MODEL,), "--data is missing; name annotated images"),
        (("--proposals", "sliding-window"), "--data is missing; name annotated images"),
        ((MODEL.parent, "--data", "shapes"), f"holds the versions 1; name one, such as {MODEL}"),
        (("nowhere",), "nowhere does not exist"),
        ((MODEL, "--data", "shapes", "--split", "vla"), "vla"),
        ((MODEL, "--check-point", "best"), "unknown option --check-point; did you mean --checkpoint?"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    tmp_path: Path, run: Callable[..., Done], arguments: tuple[object, ...], complaint: str
) -> None:
    done = run("evaluate", *arguments, *TWO_IMAGES, "--out", tmp_path / "out")
    assert complaint in done.refusal
    assert not (tmp_path / "out").exists()


def test_a_report_is_written_into_the_run_folder_but_never_into_a_published_version(tmp_path: Path) -> None:
    assert place_for_reports(tmp_path) == tmp_path
    assert place_for_reports(tmp_path / NAME) == tmp_path / NAME  # does not exist, which is an error once it is read
    (tmp_path / NAME).touch()
    assert place_for_reports(tmp_path / NAME) == tmp_path
    assert place_for_reports(MODEL) == place_for_reports(None) == Path()
