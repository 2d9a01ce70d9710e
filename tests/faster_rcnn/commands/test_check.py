"""The command that checks annotated images: it names every fault and says whether training could start."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from faster_rcnn.commands import check
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image


class Done(NamedTuple):
    lines: list[str]
    error: str  # "" if the command succeeded


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command in this process, because starting another takes longer than the command itself."""

    def run(*arguments: object) -> Done:
        code = check.main([str(word) for word in arguments])
        printed = capsys.readouterr()
        return Done(printed.out.splitlines(), printed.err.strip().splitlines()[-1] if code else "")

    return run


def test_the_command_lists_all_faults_then_describes_the_data_and_fails(
    tmp_path: Path, run: Callable[..., Done]
) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", colour="blue")
    boxes = [(10, 20, 30, 20), (10, 20, 0, 20), (200, 20, 10, 10), (90, 20, 30, 20)]
    annotations = [annotation_entry(place, 1 + place % 2, box) for place, box in enumerate(boxes)]
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg"), image_entry(2, "b.jpg")], annotations)
    (tmp_path / "annotations" / "val.json").write_text("{")
    done = run("--data", source)
    assert done.lines[0] == "== train"
    assert sorted(line.rpartition("train.json")[2].partition(": its")[0] for line in done.lines[1:4]) == [
        ":10:1: annotation 3",
        ":8:1: annotation 1",
        ":9:1: annotation 2",
    ]
    assert done.lines[4] == "faults: 2 × box outside the image, 1 × box without area"
    assert done.lines[5] == "2 images, 0 of them without objects; sizes: 100×60 (2)"
    assert done.lines[7].split() == ["dog", "2", "2"]
    assert any(line.startswith("compact: anchor scales 32 64 128 256") for line in done.lines)
    assert any("val.json: not JSON" in line for line in done.lines)
    assert done.error.endswith(
        "has errors: 2 × box outside the image, 1 × box without area, 1 × unusable annotations; correct them"
    )
    skipping = run(
        "--data", source, "--split", "train", "--skip-bad-boxes", "--anchor-scales", 64, "--backbone", "vgg16"
    )
    assert skipping.error == ""
    assert any(line.startswith("vgg16: anchor scales 64, ratios 0.5 1 2, images re") for line in skipping.lines)


def test_the_command_accepts_image_sizes(tmp_path: Path, run: Callable[..., Done]) -> None:
    write_image(tmp_path / "a.jpg")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [annotation_entry(1, 1)])
    done = run("--data", source, "--min-size", 90, "--max-size", 120)
    assert done.error == ""
    assert "compact: anchor scales 32 64 128 256, ratios 0.5 1 2, images resized to 90 pixels (longest side 120)" in (
        done.lines
    )


def test_scales_that_do_not_fit_the_maps_are_refused_before_any_image_is_read(
    run: Callable[..., Done],
) -> None:
    done = run("--data", "coco:nowhere", "--split", "train", "--backbone", "resnet50_fpn", "--anchor-scales", 32, 64)
    assert "resnet50_fpn has 5 feature maps, but 2 anchor scales are given; give 5 or a multiple of 5" in done.error


def test_a_check_of_annotations_does_not_import_torch(tmp_path: Path) -> None:
    """Importing torch takes seconds, and half a gigabyte that a large data set may need."""
    write_image(tmp_path / "a.jpg")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [annotation_entry(1, 1, (10, 20, 30, 20))])
    program = (
        "import sys; from faster_rcnn.commands.check import main; "
        f"print(main(['--data', {source!r}, '--split', 'train', '--no-decode']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_shapes_need_no_check(run: Callable[..., Done]) -> None:
    done = run("--data", "shapes")
    assert done.error == ""
    assert done.lines == ["generated images are drawn exactly as they are annotated; there is nothing to check"]


def test_the_error_names_the_data_that_cannot_be_opened(tmp_path: Path, run: Callable[..., Done]) -> None:
    for source in ("imagenet", f"voc:{tmp_path}", f"coco:{tmp_path / 'nowhere'}"):
        done = run("--data", source)
        assert source in done.error
        assert "\n" not in done.error


def test_the_check_counts_images_with_more_objects_than_detections(tmp_path: Path, run: Callable[..., Done]) -> None:
    write_image(tmp_path / "a.jpg")
    boxes = [(x * 6, y * 4, 5, 3) for x in range(10) for y in range(11)]  # 110 objects, and one crowd
    annotations = [annotation_entry(number, 1, box) for number, box in enumerate(boxes)]
    annotations.append(annotation_entry(999, 1, (0, 0, 90, 50)) | {"iscrowd": 1})
    done = run("--data", write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], annotations))
    assert done.error == ""
    (warning,) = (line for line in done.lines if "more objects" in line)
    assert warning.startswith("warning: 1 of 1 images have more objects (up to 110) than the 100 detections")
    assert "1 crowds: not counted above and not trained on; detections in them count neither as true nor as false" in (
        done.lines
    )


def test_annotations_alone_can_be_checked(tmp_path: Path, run: Callable[..., Done]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [annotation_entry(1, 1)])
    assert "a.jpg cannot be read" in "\n".join(run("--data", source).lines)
    done = run("--data", source, "--no-decode")
    assert done.error == ""
    assert done.lines[-1].startswith("no image was decoded, because of --no-decode")


def test_an_unknown_backbone_is_refused_with_the_known_ones(tmp_path: Path, run: Callable[..., Done]) -> None:
    assert (
        "unknown backbone 'resnet51'; choose from: compact, " in run("--data", "coco:x", "--backbone", "resnet51").error
    )


@pytest.mark.contract("6.4")
def test_a_class_that_only_validation_has_is_an_error_if_a_box_has_it(tmp_path: Path, run: Callable[..., Done]) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", colour="blue")
    source = write_coco_folder(tmp_path, [image_entry(1, "a.jpg")], [annotation_entry(1, 1, (10, 20, 30, 20))])
    file = tmp_path / "annotations" / "train.json"
    document = json.loads(file.read_text())
    document["images"], other = [image_entry(2, "b.jpg")], dict(document["categories"][0], name="zebra", id=9)
    document["annotations"] = [annotation_entry(1, 2, (10, 20, 30, 20))]
    document["categories"].append(other)
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(document))
    assert run("--data", source).error == ""  # no box of val is a zebra
    document["annotations"][0]["category_id"] = 9
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(document))
    done = run("--data", source)
    assert any("split val has boxes of classes that the training split does not list: zebra" in x for x in done.lines)
    assert done.error.endswith("has errors: 1 × unknown class; correct them")
