"""The check before training: every fault of every file is named, and none is left to be met late."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faster_rcnn.data.annotated import AnnotatedImages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from faster_rcnn.commands.command_line import run_command
from faster_rcnn.data.decode_check import check_before_training, check_images, open_checked, summary
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset, open_folder

ROOT = Path(__file__).resolve().parents[3]
ABUSE = Path(os.environ.get("REAL_DATA_DIR", "")) / "abuse"
BCCD = Path(os.environ.get("REAL_DATA_DIR", "")) / "bccd"
real = pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR names no folder of real images")


class Done(NamedTuple):
    lines: list[str]
    error: str  # "" if the command ended well


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, in this process: starting another takes longer than all it does."""
    specification = importlib.util.spec_from_file_location("check_data", ROOT / "scripts" / "check_data.py")
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments)])
        error = ""
        try:
            run_command(script.main)
        except SystemExit as end:
            error = str(end)
        return Done(capsys.readouterr().out.splitlines(), error)

    return run


def picture(file: Path, size: tuple[int, int] = (100, 60), colour: str = "red", kind: str = "JPEG") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file, kind)


def listed(number: int, name: str, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 100, "height": 60} | changes


def annotated(number: int, image: int, box: tuple[float, ...] = (10, 20, 30, 20)) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": list(box)}


def coco(
    folder: Path, images: list[Any], annotations: list[Any], split: str = "train", names: tuple[str, ...] = ("dog",)
) -> str:
    """A line an element, so that the first image is on line 2 and the first annotation on line 5 + len(images)."""
    (folder / "annotations").mkdir(exist_ok=True)
    categories = [{"id": place, "name": name} for place, name in enumerate(names, 1)]
    lists = {"images": images, "categories": categories, "annotations": annotations}
    body = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(one) for one in values) + "]" for name, values in lists.items()
    )
    (folder / "annotations" / f"{split}.json").write_text("{" + body + "}")
    return f"coco:{folder}"


def test_every_image_is_decoded_and_what_cannot_be_trained_on_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "good.jpg")
    picture(tmp_path / "cut.jpg", (100, 60), "blue")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    picture(tmp_path / "large.jpg", (120, 60), "green")
    images = [listed(place, f"{name}.jpg") for place, name in enumerate(["good", "cut", "text", "empty", "large"])]
    source = coco(tmp_path, images, [annotated(1, 0), annotated(2, 4)])
    dataset = open_folder(source, "train")
    assert len(dataset) == 5
    faults = check_images(dataset, workers=2)
    assert [(fault.kind, fault.where.rpartition("train.json")[2]) for fault in faults] == [
        ("unreadable image", ":3:1"),
        ("unreadable image", ":4:1"),
        ("unreadable image", ":5:1"),
        ("image of another size", ":6:1"),
    ]
    assert "large.jpg is 120×60 upright, listed as 100×60" in str(faults[3])
    assert [dataset.name(index) for index in range(len(dataset))] == ["good.jpg"]
    assert dataset[0].boxes.tolist() == [[10, 20, 40, 40]]
    with pytest.raises(ValueError, match=r"cut.jpg cannot be read.* and 1 more · scripts/check_data.py --data coco:"):
        check_before_training([open_dataset(source, "train")], workers=2)
    skipping = open_dataset(source, "train", skip_bad_boxes=True)
    assert summary(check_before_training([skipping, Shapes("val")], workers=2)) == (
        "3 × unreadable image, 1 × image of another size"
    )
    assert len(skipping) == 1


def test_whoever_opens_a_data_set_checked_meets_no_broken_image(tmp_path: Path) -> None:
    picture(tmp_path / "good.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    source = coco(tmp_path, [listed(1, "text.jpg"), listed(2, "good.jpg")], [annotated(1, 2)])
    with pytest.raises(ValueError, match=r"text.jpg cannot be read.*--skip-bad-boxes leaves out what is faulty"):
        open_checked(source, "train")
    dataset = open_checked(source, "train", skip_bad_boxes=True, workers=1)
    assert [(dataset.name(index), dataset[index].boxes.tolist()) for index in range(len(dataset))] == [
        ("good.jpg", [[10, 20, 40, 40]])
    ]
    assert open_checked("shapes", "val", seed=3)[0].image.tolist() == Shapes("val", seed=3)[0].image.tolist()


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "it is empty;"), (b"no image", "it is not an image that can be read;")]
)
def test_why_a_file_cannot_be_read_is_told_to_one_who_sent_it_nowhere(tmp_path: Path, data: bytes, why: str) -> None:
    picture(tmp_path / "a.jpg")
    source = coco(tmp_path, [listed(1, "a.jpg")], [annotated(1, 1)])
    dataset = open_dataset(source, "train")
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.jpg cannot be read: {why}"):
        dataset[0]


def test_a_data_set_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    source = coco(tmp_path, [listed(1, "text.jpg")], [])
    dataset = open_dataset(source, "train", skip_bad_boxes=True)
    with pytest.raises(ValueError, match="split train has no image that can be read"):
        check_before_training([dataset], workers=1)
    with pytest.raises(ValueError, match="split train has no image that can be used"):
        open_dataset(coco(tmp_path, [listed(1, "missing.jpg")], []), "train", skip_bad_boxes=True)


def test_mislabelled_and_repeated_images_are_warnings(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", colour="blue")
    picture(tmp_path / "b.jpg", kind="PNG")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.jpg").read_bytes())
    images = [listed(1, "a.jpg"), listed(2, "b.jpg"), listed(3, "c.png")]
    source = coco(tmp_path, images, [annotated(1, 1)])
    coco(tmp_path, [listed(9, "a.jpg")], [annotated(1, 9)], split="val")
    faults = check_before_training([open_dataset(source, split) for split in ("train", "val")], workers=2)
    assert all(fault.warning for fault in faults)
    assert [fault.what for fault in faults] == [
        "b.jpg is a PNG image by its content",
        f"c.png has the same bytes as {tmp_path / 'b.jpg'} (split train)",
        "images of split val are in split train too: 1, the first a.jpg",
    ]


def test_images_listed_twice_or_outside_the_folder_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "inside" / "a.jpg")
    picture(tmp_path / "outside.jpg")
    images = [
        listed(1, "a.jpg"),
        listed(1, "a.jpg"),
        listed(2, "a.jpg"),
        listed(3, "../outside.jpg"),
        listed(4, str(tmp_path / "outside.jpg")),
        listed(5, "a.jpg", width="100"),
        {"id": 6},
        None,
        listed(7, "a\x00.jpg"),
        listed(8, "x" * 5000),
    ]
    dataset = open_folder(
        coco(tmp_path / "inside", images, [annotated(1, 3), annotated(2, 5), annotated(3, 1)]), "train"
    )
    found = {fault.where.rpartition("json:")[2]: fault.kind for fault in dataset.faults}
    assert found == {
        "3:1": "image listed twice",
        "4:1": "image listed twice",
        "5:1": "name outside the folder",
        "6:1": "name outside the folder",
        "7:1": "malformed image",
        "8:1": "malformed image",
        "9:1": "malformed image",
        "10:1": "missing image",
        "11:1": "missing image",
    }
    assert len(dataset) == 1
    assert len(dataset.objects(0)[0]) == 1
    assert all("\n" not in str(fault) and "\x00" not in str(fault) for fault in dataset.faults)


def test_near_duplicates_are_warnings_and_left_out_only_if_asked(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    # 20 × 20 and one pixel aside: 380 / 420 = 0.905; five aside: 300 / 500 = 0.6.
    boxes = [(10, 20, 20, 20), (11, 20, 20, 20), (15, 20, 20, 20)]
    annotations = [annotated(place, 1, box) for place, box in enumerate(boxes)]
    source = coco(tmp_path, [listed(1, "a.jpg")], [*annotations, annotated(3, 1, boxes[0]) | {"iscrowd": 1}])
    kept = open_folder(source, "train")
    assert [fault.kind for fault in kept.faults] == ["near-duplicate box"]
    assert "annotation 1: its box [11, 20, 20, 20] in a.jpg overlaps with IoU 0.90 the box of annotation 0" in (
        kept.faults[0].what
    )
    assert len(kept[0].boxes) == 4
    skipped = open_dataset(source, "train", skip_bad_boxes=True)
    assert skipped[0].boxes[:, 0].tolist() == [10, 15, 10]


def test_very_many_boxes_in_an_image_are_compared_in_bounded_memory(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    grid = [(x * 0.5, y * 0.5, 0.4, 0.4) for x in range(60) for y in range(20)]
    annotations = [annotated(place, 1, box) for place, box in enumerate([*grid, grid[7], grid[1000]])]
    dataset = open_folder(coco(tmp_path, [listed(1, "a.jpg")], annotations), "train")
    assert [fault.what.partition(":")[0] for fault in dataset.faults] == ["annotation 1200", "annotation 1201"]
    assert len(dataset.objects(0)[0]) == 1200


@pytest.mark.parametrize(
    ("names", "kind", "warning"),
    [
        (("dog", "Dog"), "alike class names", True),
        (("dog", " dog"), "alike class names", True),
        (("hot dog", "hot  dog"), "alike class names", True),
        (("dog", "dog"), "class listed twice", False),
        (("dog", " "), "malformed category", False),
    ],
)
def test_class_names_that_a_person_would_confuse_are_named(
    tmp_path: Path, names: tuple[str, ...], kind: str, warning: bool
) -> None:
    picture(tmp_path / "a.jpg")
    source = coco(tmp_path, [listed(1, "a.jpg")], [annotated(1, 1)], names=names)
    faults = open_folder(source, "train").faults
    assert [(fault.kind, fault.warning) for fault in faults] == [(kind, warning)]
    if not warning:  # without the class the others would be numbered anew
        with pytest.raises(ValueError, match=r"train.json:5:1: .*shows all$"):
            open_dataset(source, "train", skip_bad_boxes=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "not JSON"),
        (b'{"images": [', "not JSON: .* line 1 column"),
        (b"\xff\xfe\x00", "not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' * 100_000, "not JSON"),
        (b"[]", "no list of images, but None"),
        (b"null", "no list of images"),
        (b'{"images": {}, "categories": [], "annotations": []}', "no list of images, but {}"),
        (b'{"images": [], "categories": [], "annotations": []}', "its list of images is empty"),
        (b'{"images": [1], "categories": [], "annotations": []}', "its list of categories is empty"),
        (b'{"images": [1], "categories": [1], "annotations": null}', "no list of annotations, but None"),
        (b'{"images": [[[1]]], "categories": [2], "annotations": []}', r"a image is \[\[1\]\], not an object"),
        (b'{"images": [' + b"1" * 5000 + b"]}", "not JSON: Exceeds the limit"),
    ],
)
def test_a_document_that_is_none_is_named_in_one_line(tmp_path: Path, text: bytes, complaint: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_bytes(text)
    with pytest.raises(ValueError, match=complaint) as refusal:
        open_dataset(f"coco:{tmp_path}", "train")
    assert "train.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
COCO_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "width", "height", "name")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_written_in_a_document_is_a_fault_or_can_be_trained_on(tmp_path: Path, data: st.DataObject) -> None:
    picture(tmp_path / "a.jpg")
    document: dict[str, Any] = {
        "images": [listed(1, "a.jpg"), listed(2, "a.jpg")],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [annotated(1, 1), annotated(2, 1, (40, 20, 30, 20))],
    }
    for _ in range(data.draw(st.integers(1, 3))):
        element = data.draw(st.sampled_from([one for values in document.values() for one in values]))
        element[data.draw(st.sampled_from(COCO_KEYS))] = data.draw(json_values)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(document))
    refusal = ""
    try:
        dataset = open_dataset(f"coco:{tmp_path}", "train", skip_bad_boxes=True)
        check_before_training([dataset], workers=1)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "train.json" in refusal or "has no image that can be" in refusal
        return
    assert isinstance(dataset, AnnotatedImages)
    for index in range(len(dataset)):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= [width, height]).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert set(sample.labels.tolist()) <= set(range(len(dataset.labels)))


@real
def test_no_hostile_image_survives_the_check_and_breaks_later(tmp_path: Path) -> None:
    files = [file for file in sorted(ABUSE.rglob("*")) if file.is_file() and file.stat().st_size < 200_000][::5]
    for place, file in enumerate(files):
        (tmp_path / f"{place}.jpg").symlink_to(file)
    images = [listed(place, f"{place}.jpg") for place in range(len(files))]
    dataset = open_folder(coco(tmp_path, images, []), "train")
    faults = check_images(dataset, workers=2)
    assert len(files) > 50
    left_out = sum(not fault.warning for fault in faults)
    assert len(dataset) + left_out == len(files)
    assert left_out > 20
    assert all(dataset[index].image.shape == (60, 100, 3) for index in range(len(dataset)))


def test_the_command_tells_all_faults_then_what_there_is_and_fails(tmp_path: Path, run: Callable[..., Done]) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg", colour="blue")
    boxes = [(10, 20, 30, 20), (10, 20, 0, 20), (200, 20, 10, 10), (90, 20, 30, 20)]
    annotations = [annotated(place, 1 + place % 2, box) for place, box in enumerate(boxes)]
    source = coco(tmp_path, [listed(1, "a.jpg"), listed(2, "b.jpg")], annotations)
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


def test_the_command_takes_the_sizes_that_it_suggests(tmp_path: Path, run: Callable[..., Done]) -> None:
    picture(tmp_path / "a.jpg")
    source = coco(tmp_path, [listed(1, "a.jpg")], [annotated(1, 1)])
    done = run("--data", source, "--min-size", 90, "--max-size", 120)
    assert done.error == ""
    assert "compact: anchor scales 32 64 128 256, ratios 0.5 1 2, images resized to 90 pixels (longest side 120)" in (
        done.lines
    )


def test_scales_that_cannot_be_dealt_to_the_maps_are_named_before_any_image_is_read(
    run: Callable[..., Done],
) -> None:
    done = run("--data", "coco:nowhere", "--split", "train", "--backbone", "resnet50_fpn", "--anchor-scales", 32, 64)
    assert "resnet50_fpn has 5 feature maps and 2 anchor scales to deal to them; give 5, or a multiple" in done.error


def test_shapes_need_no_check(run: Callable[..., Done]) -> None:
    done = run("--data", "shapes")
    assert done.error == ""
    assert done.lines == ["shapes are drawn exactly as they are annotated; there is nothing to check"]


def test_the_command_names_what_it_cannot_open(tmp_path: Path, run: Callable[..., Done]) -> None:
    for source in ("imagenet", f"voc:{tmp_path}", f"coco:{tmp_path / 'nowhere'}"):
        done = run("--data", source)
        assert source in done.error
        assert "\n" not in done.error
