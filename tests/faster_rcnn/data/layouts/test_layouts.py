"""Every layout, as the public tools write it, is found without a prefix and gives the same objects."""

import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from faster_rcnn.data.sources import open_folder, splits_of
from tests.faster_rcnn.data.layouts.layout_writers import (
    WITH_SPLITS,
    WITHOUT_SPLITS,
    Object,
    Photo,
    Splits,
    Writer,
    classes_of,
    cvat_yolo,
    together,
)

SPLITS: Splits = {
    "train": [
        Photo("one.jpg", 60, 40, (Object("dog", 10, 20, 40, 40), Object("cat", 0, 0, 60, 40))),
        Photo("two.jpg", 50, 70, (Object("cat", 5, 6, 7, 60),)),
        Photo("three.jpg", 64, 64, ()),
    ],
    "val": [Photo("four.jpg", 30, 30, (Object("dog", 1, 2, 29, 28),)), Photo("five.jpg", 33, 30, ())],
    "test": [Photo("six.jpg", 30, 31, (Object("cat", 3, 3, 20, 20),))],
}
by_name = pytest.mark.parametrize("write", [*WITH_SPLITS, *WITHOUT_SPLITS], ids=lambda write: write.__name__)


def objects_in(source: str, split: str) -> dict[str, list[tuple[str, list[float]]]]:
    """The class and the box of each object, in order, by the image's name without what Label Studio puts before it."""
    dataset = open_folder(source, split)
    found = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        boxes = sample.boxes.round(2).tolist()
        names = [dataset.labels[label] for label in sample.labels]
        name = Path(dataset.name(index)).name
        found[name.partition("-")[2] if name[8:9] == "-" else name] = list(zip(names, boxes, strict=True))
    return found


def expected(photos: list[Photo]) -> dict[str, list[tuple[str, list[float]]]]:
    return {photo.name: [(one.name, [one.x1, one.y1, one.x2, one.y2]) for one in photo.objects] for photo in photos}


def splits_written(write: Writer, splits: Splits) -> Splits:
    """The splits as the layout can hold them."""
    if write in WITHOUT_SPLITS:
        return {"all": together(splits)}
    if write is cvat_yolo:  # has no subset for testing
        return {"train": [*splits["train"], *splits.get("test", [])], "val": splits["val"]}
    return splits


@by_name
@pytest.mark.contract("6.3")
def test_a_layout_is_found_and_read(tmp_path: Path, write: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(write(tmp_path / "data", SPLITS))
    written = splits_written(write, SPLITS)
    for split, photos in written.items():
        assert objects_in(source, split) == expected(photos)
        assert open_folder(source, split).labels == ("cat", "dog")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(f"{source}: ")] == lines
    assert len(lines) == 1, "the layout is said once"
    listed = splits_of(source)
    assert sorted(listed) == (["train", "val"] if "all" in written else sorted(written))


@by_name
def test_a_layout_has_no_faults_but_those_of_its_kind(tmp_path: Path, write: Writer) -> None:
    source = str(write(tmp_path / "data", SPLITS))
    usual = {"ultralytics": {"image without annotations"}, "label_studio_min": {"image found elsewhere"}}
    usual["label_studio_json"] = usual["label_studio_min"]
    usual["cvat_yolo"] = usual["cvat_ultralytics"] = {"image found elsewhere"}
    for split in splits_written(write, SPLITS):
        found = {fault.kind for fault in open_folder(source, split).faults}
        assert found <= usual.get(write.__name__, set())


@by_name
def test_a_layout_is_found_in_a_zip_file_with_a_root_folder_and_what_a_mac_leaves(
    tmp_path: Path, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "data", SPLITS)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in sorted((tmp_path / "data").rglob("*")):
            if file.is_file():
                path = file.relative_to(tmp_path / "data").as_posix()
                archive.write(file, f"my export/{path}")
                archive.writestr(f"__MACOSX/my export/._{path.replace('/', '_')}", b"\0\5\x16\7")
                archive.writestr(f"my export/{Path(path).parent}/._{file.name}", b"\0\5\x16\7")
    shutil.rmtree(tmp_path / "data")
    for split, photos in splits_written(write, SPLITS).items():
        assert objects_in(str(tmp_path / "export.zip"), split) == expected(photos)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache", "export.zip"]


@st.composite
def data_sets(draw: st.DrawFn) -> Splits:
    """Two splits, with one to three images each; every box is distinct and has an area."""
    names = st.sampled_from(["ant", "bee", "no", "1"])  # YAML would read the last two as something else
    number = iter(range(100))

    def photos() -> list[Photo]:
        made = []
        for _ in range(draw(st.integers(1, 3))):
            width, height = draw(st.integers(40, 90)), draw(st.integers(40, 90))
            corners = draw(
                st.lists(st.tuples(st.integers(0, width - 8), st.integers(0, height - 8)), max_size=3, unique=True)
            )
            boxes = [(x, y, draw(st.integers(x + 3, width)), draw(st.integers(y + 3, height))) for x, y in corners]
            objects = [Object(draw(names), *box) for box in boxes]
            made.append(Photo(f"photo {next(number)}.jpg", width, height, tuple(objects)))
        objects = (Object(draw(names), 1, 2, 30, 40),)
        return [*made, Photo(f"photo {next(number)}.jpg", 40, 50, objects)]

    return {"train": photos(), "val": photos()}


# Without shrinking, because one example writes and reads twenty data sets.
@settings(
    max_examples=5,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data_sets())
def test_the_same_objects_written_in_any_layout_are_read_back_equal(tmp_path: Path, splits: Splits) -> None:
    for write in (*WITH_SPLITS, *WITHOUT_SPLITS):
        folder = tmp_path / write.__name__
        shutil.rmtree(folder, ignore_errors=True)
        source = str(write(folder, splits))
        for split, photos in splits_written(write, splits).items():
            assert objects_in(source, split) == expected(photos), f"{write.__name__}, {split}"
            assert list(open_folder(source, split).labels) == classes_of(splits), write.__name__
