"""Pascal VOC's format: what is read, and which faults are reported."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from faster_rcnn.data.decode_check import check_before_training
from faster_rcnn.data.sources import open_dataset, open_folder, splits_of

BCCD = Path(os.environ.get("REAL_DATA_DIR", "")) / "bccd"
CARDS = Path(os.environ.get("REAL_DATA_DIR", "")) / "cards"
real = pytest.mark.skipif("REAL_DATA_DIR" not in os.environ, reason="REAL_DATA_DIR is not set")


def voc_object(name: str = "dog", corners: tuple[object, ...] = (11, 21, 40, 40), difficult: str = "0") -> str:
    xmin, ymin, xmax, ymax = corners
    return (
        f"\n<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{xmin}</xmin>"
        f"<ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
    )


def document(*objects: str, filename: str = "a.jpg", size: str = "<width>100</width><height>60</height>") -> str:
    """An annotation file with the size on line 1 and the objects from line 2 on."""
    inner = "".join(objects)
    return f"<annotation><filename>{filename}</filename><size>{size}<depth>3</depth></size>{inner}\n</annotation>"


def write(folder: Path, documents: dict[str, str], images: tuple[str, ...] = (), **splits: str) -> str:
    """Writes a VOC folder, with an image for each document unless `images` is given; train lists all documents."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, text in documents.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
    for number, image in enumerate(images or [f"{stem}.jpg" for stem in documents]):
        Image.new("RGB", (100, 60), (number, 0, 0)).save(folder / "JPEGImages" / image, "JPEG")
    for split, names in ({"train": "\n".join(documents)} | splits).items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return f"voc:{folder}"


@pytest.mark.contract("6.3")
def test_corners_are_counted_from_one_and_belong_to_the_box(tmp_path: Path) -> None:
    whole, dog = voc_object(corners=(1, 1, 100, 60)), voc_object("cat", (11, 21, 40, 40), difficult="1")
    dataset = open_dataset(write(tmp_path, {"a": document(whole, dog)}), "train")
    assert dataset.labels == ("cat", "dog")
    assert dataset.size(0) == (60, 100)
    assert dataset.name(0) == "a.jpg"
    sample = dataset[0]
    assert sample.image.shape == (60, 100, 3)
    assert sample.boxes.tolist() == [[0, 0, 100, 60], [10, 20, 40, 40]]
    assert sample.labels.tolist() == [1, 0]
    assert sample.difficult is not None
    assert sample.difficult.tolist() == [False, True]
    assert sample.objects().labels.tolist() == [1]
    boxes, labels = open_folder(f"voc:{tmp_path}", "train").objects(0)
    assert boxes.tolist() == [[0, 0, 100, 60]]
    assert labels.tolist() == [1]


def test_all_splits_number_the_classes_in_the_same_way(tmp_path: Path) -> None:
    documents = {"a": document(voc_object("zebra")), "b": document(voc_object("ant")), "c": document()}
    source = write(tmp_path, documents, train="a", val="b\n", test="c")
    for split in ("train", "val", "test"):
        assert open_dataset(source, split).labels == ("ant", "zebra")
    assert open_dataset(source, "train")[0].labels.tolist() == [1]
    assert open_dataset(source, "test")[0].boxes.shape == (0, 4)


def test_lists_of_one_class_are_not_splits(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document(voc_object())}, train="a", dog_train="a  1\n", cat_train="a -1\n", best="a")
    assert splits_of(source) == ["best", "train"]
    with pytest.raises(FileNotFoundError, match=r"has no split val \(splits found: best, train\); --val-share 0.2"):
        open_dataset(source, "val")
    with pytest.raises(FileNotFoundError, match=r"layout is not known\. Found: a.jpg\."):
        open_dataset(f"voc:{tmp_path / 'JPEGImages'}", "train")


def test_lists_may_have_a_second_column_an_extension_or_spaces_in_their_names(tmp_path: Path) -> None:
    documents = {"a": document(voc_object()), "b.1": document(), "my dog 1": document()}
    source = write(tmp_path, documents, train="a  1\r\nb.1.jpg 0\r\n\r\nmy dog 1\r\n")
    dataset = open_dataset(source, "train")
    assert [dataset.name(index) for index in range(len(dataset))] == ["a.jpg", "b.1.jpg", "my dog 1.jpg"]


def test_an_image_is_found_by_the_annotation_files_name_or_else_by_its_filename_element(tmp_path: Path) -> None:
    documents = {"a": document(voc_object(), filename="nonsense.png"), "b": document(filename="C:\\photos\\other.JPG")}
    dataset = open_dataset(write(tmp_path, documents, images=("a.JPG", "other.JPG")), "train")
    assert [dataset.name(index) for index in range(len(dataset))] == ["a.JPG", "other.JPG"]


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    documents = {
        "a": document(voc_object(), size="<width>0</width><height>0</height>"),
        "b": document(size="<width>wide</width>", filename="b.jpg"),
    }
    dataset = open_folder(write(tmp_path, documents), "train")
    assert [dataset.size(0), dataset.size(1)] == [(60, 100), (60, 100)]
    assert [fault.kind for fault in dataset.faults] == ["missing size"]
    assert dataset.faults[0].warning
    assert "split train: 2 of 2 images have no width and height that can be used" in str(dataset.faults[0])


def repairs(source: str, split: str = "train") -> dict[str, str]:
    """The warnings of a split by their kinds."""
    faults = open_folder(source, split).faults
    assert all(fault.warning for fault in faults), faults
    assert len({fault.kind for fault in faults}) == len(faults)
    return {fault.kind: fault.what for fault in faults}


def test_parts_of_an_object_are_left_out_and_counted(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    whole = voc_object("dog").replace("<object>", f"<object>{part}")
    source = write(tmp_path, {"a": document(whole, voc_object("cat"))})
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("cat", "dog")
    assert dataset[0].boxes.tolist() == [[10, 20, 40, 40], [10, 20, 40, 40]]
    assert repairs(source) == {
        "parts": "split train: 1 of 2 objects have <part>s, whose boxes are left out; the first is object 1 (dog)"
    }


def test_every_box_of_an_object_is_read(tmp_path: Path) -> None:
    second = "<bndbox><xmin>51</xmin><ymin>1</ymin><xmax>60</xmax><ymax>9</ymax></bndbox>"
    third = "<bndbox><xmin>x</xmin><ymin>1</ymin><xmax>60</xmax><ymax>9</ymax></bndbox>"
    source = write(tmp_path, {"a": document(voc_object("dog").replace("</object>", f"{second}</object>"))})
    sample = open_dataset(source, "train")[0]
    assert sample.boxes.tolist() == [[10, 20, 40, 40], [50, 0, 60, 9]]
    assert sample.labels.tolist() == [0, 0]
    assert "1 of 2 objects are further boxes of one <object>" in repairs(source)["several boxes in one object"]
    source = write(tmp_path, {"a": document(voc_object("dog").replace("</object>", f"{third}</object>"))})
    with pytest.raises(ValueError, match=r"object 1, box 2 \(dog\): <xmin> of its <bndbox> is 'x', not a number"):
        open_dataset(source, "train")


def test_objects_are_read_at_any_depth_and_in_any_letter_case(tmp_path: Path) -> None:
    text = document(f"<objects>{voc_object()}</objects>", voc_object("cat"))
    shouted = re.sub(r"</?\w+>", lambda tag: tag[0].upper(), document(voc_object(), filename="b.jpg"))
    dataset = open_dataset(write(tmp_path, {"a": text, "b": shouted}), "train")
    assert dataset[0].labels.tolist() == [1, 0]
    assert dataset[1].boxes.tolist() == [[10, 20, 40, 40]]


@pytest.mark.parametrize(
    ("outline", "box"),
    [
        # Points are counted from 1 like corners: x 11..40 and y 21..40 are pixels 10 to 40 and 20 to 40.
        ("<polygon><x1>11</x1><y1>30</y1><x2>40</x2><y2>21</y2><x3>20.5</x3><y3>40</y3></polygon>", [10, 20, 40, 40]),
        ("<polygon><pt><x>11</x><y>21</y></pt><pt><x>40</x><y>40</y></pt></polygon>", [10, 20, 40, 40]),
        # A quarter turn of a box 20 wide and 10 high around (30, 30): x 25..35, y 20..40.
        (f"<robndbox><cx>30</cx><cy>30</cy><w>20</w><h>10</h><angle>{np.pi / 2}</angle></robndbox>", [24, 19, 35, 40]),
    ],
)
def test_an_object_without_a_box_has_the_box_of_its_outline(tmp_path: Path, outline: str, box: list[float]) -> None:
    source = write(tmp_path, {"a": document(f"<object><name>dog</name>{outline}</object>")})
    np.testing.assert_allclose(open_dataset(source, "train")[0].boxes, [box], atol=1e-5)
    assert "1 of 1 objects have no <bndbox>" in repairs(source)["box from the outline"]


@pytest.mark.parametrize(
    ("written", "difficult", "counted"),
    [
        ("0", False, False),
        ("1", True, False),
        ("Unspecified", False, True),
        ("False", False, True),
        ("True", True, True),
        ("1.0", True, True),
        ("", False, True),
    ],
)
def test_difficult_may_be_a_word(tmp_path: Path, written: str, difficult: bool, counted: bool) -> None:
    source = write(tmp_path, {"a": document(voc_object(difficult=written), voc_object("cat"))})
    sample = open_dataset(source, "train")[0]
    assert sample.difficult is not None
    assert sample.difficult.tolist() == [difficult, False]
    assert list(repairs(source)) == (["difficult in words"] if counted else [])


def test_a_missing_difficult_is_the_formats_default(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document(voc_object().replace("<difficult>0</difficult>", ""))})
    assert repairs(source) == {}
    sample = open_dataset(source, "train")[0]
    assert sample.difficult is not None
    assert sample.difficult.tolist() == [False]


def test_corners_may_be_fractions_or_swapped(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document(voc_object(corners=("12.0", "20.5", 40, 40)), voc_object("cat"))})
    assert open_dataset(source, "train")[0].boxes.tolist()[0] == [11, 19.5, 40, 40]
    assert repairs(source) == {}
    source = write(tmp_path, {"a": document(voc_object(corners=(40, 21, 11, 40)), voc_object("cat"))})
    assert open_dataset(source, "train")[0].boxes.tolist()[0] == [10, 20, 40, 40]
    assert "1 of 2 objects have a corner with a max below its min" in repairs(source)["swapped corners"]


def test_boxes_that_begin_at_0_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document(voc_object(corners=(0, 21, 40, 40)), voc_object("cat"))})
    assert open_dataset(source, "train")[0].boxes.tolist()[0] == [0, 20, 40, 40]
    assert "1 of 2 objects begin at 0, although VOC counts pixels from 1" in repairs(source)["boxes that begin at 0"]


def test_corners_that_are_a_width_and_a_height_are_refused_with_the_remedy(tmp_path: Path) -> None:
    # x, y, width and height; as corners, their max would be below their min, and all of them fit as sizes.
    objects = [
        voc_object(corners=(60, 30, 20, 10)),
        voc_object(corners=(50, 20, 30, 10)),
        voc_object(corners=(9, 9, 20, 20)),
    ]
    source = write(tmp_path, {"a": document(*objects)})
    with pytest.raises(ValueError, match=r"2 of 3 boxes do not fit their images as corners.*write xmax as xmin"):
        open_dataset(source, "train", skip_bad_boxes=True)
    fractions = [voc_object(corners=(0.1, 0.2, 0.5, 0.6)), voc_object(corners=(0, 0, 1, 0.75))]
    with pytest.raises(ValueError, match=r"all 2 boxes lie between 0 and 1.*multiply x by the image's width"):
        open_dataset(write(tmp_path, {"a": document(*fractions)}), "train", skip_bad_boxes=True)


def test_deleted_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    deleted = voc_object("cat").replace("<object>", "<object><deleted>1</deleted>")
    source = write(tmp_path, {"a": document(voc_object(), deleted)})
    dataset = open_dataset(source, "train")
    assert dataset.labels == ("dog",)
    assert dataset[0].labels.tolist() == [0]
    assert "1 of 2 objects are marked as <deleted>" in repairs(source)["deleted objects"]


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [("caf\u00e9", "cafe\u0301.jpg"), ("cafe\u0301", "caf\u00e9.jpg"), ("my%20dog", "my dog.jpg"), ("Dog", "dog.JPG")],
)
def test_an_image_is_found_under_a_name_that_looks_alike(tmp_path: Path, listed: str, on_disk: str) -> None:
    source = write(tmp_path, {listed: document(voc_object(), filename="")}, images=(on_disk,))
    assert open_dataset(source, "train").name(0) == on_disk
    assert "1 of 1 images have a file whose name differs" in repairs(source)["image under another name"]


def test_several_look_alikes_are_named_and_none_is_taken(tmp_path: Path) -> None:
    source = write(tmp_path, {"Dog": document(voc_object(), filename="")}, images=("dog.jpg", "DOG.jpg"))
    with pytest.raises(ValueError, match=r"no image Dog.\* in .*; DOG.jpg, dog.jpg look alike"):
        open_dataset(source, "train")


def test_a_filename_that_names_another_image_is_reported(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document(voc_object(), filename="b.jpg"), "b": document(filename="b")})
    assert open_dataset(source, "train").name(0) == "a.jpg"
    assert "1 of 2 images belong to an annotation file whose <filename> names" in repairs(source)["another filename"]


@pytest.mark.parametrize(
    ("faulty", "complaint"),
    [
        (voc_object(corners=(12, 21, 12, 40)), r"a.xml:3: object 2 \(dog\): its box xmin 12, .* in a.jpg has no area"),
        (voc_object(corners=(12, 40, 40, 40)), "has no area"),
        (voc_object(corners=(101, 21, 120, 40)), "lies outside a.jpg, which is 100×60"),
        (voc_object(corners=(11, 21, 103, 40)), "extends beyond the border of a.jpg"),
        (voc_object(corners=("nan", 21, 103, 40)), "<xmin> of its <bndbox> is 'nan', not a number"),
        (voc_object(corners=(1, "inf", 103, 40)), "<ymin> of its <bndbox> is 'inf', not a number"),
        (voc_object(corners=(1, 1, "ten", 40)), "<xmax> of its <bndbox> is 'ten', not a number"),
        (voc_object(corners=(1, 1, 10, "")), "<ymax> of its <bndbox> is missing"),
        (
            "\n<object><name>dog</name></object>",
            r"a.xml:3: object 2 \(dog\): it has neither a <bndbox> nor a <polygon>",
        ),
        ("\n<object><name>dog</name><bndbox/></object>", r"object 2 \(dog\): <xmin> of its <bndbox> is missing"),
        (
            "\n<object><name>dog</name><name>cat</name></object>",
            r"object 2 \(without name\): it has several names: cat, dog",
        ),
        ("\n<bndbox><xmin>1</xmin></bndbox>", "a.xml:3: a <bndbox> outside any <object> has no class name"),
        (
            "\n<object><name>dog</name><polygon><x1>3</x1><y1>few</y1></polygon></object>",
            "a point of its <polygon> is not two numbers",
        ),
        (voc_object(name=" "), r"object 2 \(without name\) has no class name"),
        (voc_object(difficult="maybe"), "<difficult> is 'maybe', neither 0 nor 1"),
        (
            voc_object(corners=(51, 21, 60, 40)) * 2,
            r"object 3 .* equals the box of object 2 \(dog\) \(.*a.xml:3\)",
        ),
    ],
)
def test_a_faulty_object_is_reported_and_can_be_skipped(tmp_path: Path, faulty: str, complaint: str) -> None:
    source = write(tmp_path, {"a": document(voc_object(), faulty)})
    with pytest.raises(ValueError, match=complaint) as refusal:
        open_dataset(source, "train")
    assert "\n" not in str(refusal.value)
    sample = open_dataset(source, "train", skip_bad_boxes=True)[0]
    assert sample.boxes.tolist()[0] == [10, 20, 40, 40]
    assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()
    assert (sample.boxes <= np.array([100, 60, 100, 60])).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "b.xml:1: not XML: it is empty; correct or remove it"),
        ("<annotation>\n<object>\n</annotation>", "b.xml:3: not XML: an element is closed under another name"),
        ('{"images": []}', "not XML: it does not begin with an element"),
        ("<html></html>", "its outermost element is <html>, not VOC's <annotation>"),
        ("<annotation>" + "<a>" * 5000 + "</a>" * 5000 + "</annotation>", "nested too deeply"),
        ("<annotation>\x00</annotation>", "not XML: a character is not allowed"),
    ],
)
def test_a_faulty_file_is_reported_and_can_be_skipped(tmp_path: Path, text: str, complaint: str) -> None:
    source = write(tmp_path, {"a": document(voc_object()), "b": text})
    with pytest.raises(ValueError, match=complaint):
        open_dataset(source, "train")
    assert len(open_dataset(source, "train", skip_bad_boxes=True)) == 1


def test_entities_are_not_resolved(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("dog")
    for definition in (f'SYSTEM "{secret}"', '"dog"'):
        text = f"<!DOCTYPE annotation [<!ENTITY e {definition}>]>" + document(voc_object(name="&e;"))
        source = write(tmp_path, {"a": text, "b": document(voc_object("cat"))})
        with pytest.raises(ValueError, match=r"object 1 \(without name\) has no class name"):
            open_dataset(source, "train")


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ("a\nmissing", "missing.xml: the file does not exist; add it"),
        ("a\nno image", r"no image no image.\* in .*JPEGImages, nor 'a.jpg_'; add it"),
        ("a\na", r"train.txt:2: a is already listed at .*train.txt:1; remove one of the two"),
        ("a\n../Annotations/a", "train.txt:2: '../Annotations/a' points outside the folder"),
        ("a\n/etc/passwd", "train.txt:2: '/etc/passwd' points outside the folder"),
        ("a\nC:\\a", "points outside the folder"),
        ("a\n" + "x" * 5000, "the file does not exist"),
    ],
)
def test_a_faulty_list_is_reported_and_can_be_skipped(tmp_path: Path, listed: str, complaint: str) -> None:
    documents = {"a": document(voc_object()), "no image": document(filename="a.jpg_")}
    source = write(tmp_path, documents, images=("a.jpg",), train=listed)
    with pytest.raises(ValueError, match=complaint):
        open_dataset(source, "train")
    assert len(open_dataset(source, "train", skip_bad_boxes=True)) == 1


def test_a_folder_without_classes_or_images_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document()})
    with pytest.raises(ValueError, match="no object of any split has a class name"):
        open_dataset(source, "train")
    write(tmp_path, {"a": document(voc_object())}, train="\n")
    with pytest.raises(ValueError, match=r"train.txt lists no images"):
        open_dataset(source, "train")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train.txt: not a list of names in UTF-8"):
        open_dataset(source, "train")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_file_is_either_reported_as_faulty_or_has_valid_boxes(tmp_path: Path, data: st.DataObject) -> None:
    text = document(voc_object(), voc_object("cat", (50, 1, 80, 30)))
    if data.draw(st.booleans()):  # replace a value, or empty it
        tag = data.draw(st.sampled_from(["name", "difficult", "xmin", "ymax", "width", "height", "filename", "bndbox"]))
        value = data.draw(st.sampled_from(["", "-1", "1e400", "1e300", "nan", "٣", "0x10", "<a/>", "&e;", "]]>"]))
        text = re.sub(f"<{tag}>.*?</{tag}>", f"<{tag}>{value}</{tag}>", text, count=1)
    else:  # remove a piece, or repeat it
        start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        text = text[:start] + text[start:end] * data.draw(st.sampled_from([0, 2])) + text[end:]
    source = write(tmp_path, {"a": text, "b": document(voc_object())})
    dataset = open_dataset(source, "train", skip_bad_boxes=True)
    check_before_training([dataset], workers=1)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= [100, 60]).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert "b.jpg" in [dataset.name(index) for index in range(len(dataset))]


def test_an_exif_rotation_is_reported_as_the_cause_of_a_wrong_size(tmp_path: Path) -> None:
    source = write(tmp_path, {"a": document(voc_object())})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 60)).save(tmp_path / "JPEGImages" / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"a.xml:1: a.jpg is 60×100 upright, listed as 100×60; its EXIF orientation"):
        open_dataset(source, "train")[0]


@real
def test_blood_cells_are_read_and_their_known_faults_are_reported() -> None:
    """PROBLEMS.csv lists ten faults, one of them (BloodImage_00284) in the split that is not checked here."""
    source = f"voc:{BCCD}"
    with pytest.raises(ValueError, match=r"BloodImage_00343.xml:50: .* has no area"):
        open_dataset(source, "train")
    faults = [fault for split in ("train", "val") for fault in open_folder(source, split).faults]
    listed = [line.split(",")[0] for line in (BCCD / "PROBLEMS.csv").read_text().splitlines()[1:]]
    found = [Path(fault.where.partition(":")[0]).stem for fault in faults]
    assert sorted(found) == sorted(set(listed) - {"BloodImage_00284"})
    assert sum(fault.warning for fault in faults) == 7
    with_all = open_folder(source, "train")
    assert with_all.labels == ("Platelets", "RBC", "WBC")
    counts = np.bincount(np.concatenate([with_all.objects(index)[1] for index in range(len(with_all))]))
    assert counts.tolist() == [209, 2382 - 1, 214]  # as published, minus the box without area
    skipped = open_folder(source, "train", skip_bad_boxes=True)
    near_duplicates = 5
    assert sum(len(skipped.objects(index)[1]) for index in range(205)) == sum(counts) - near_duplicates


@real
def test_cards_are_read_whether_their_extension_is_upper_or_lower_case() -> None:
    dataset = open_folder(f"voc:{CARDS}", "train")
    assert dataset.faults == []
    assert len(dataset) == 296
    assert dataset.labels == ("ace", "jack", "king", "nine", "queen", "ten")
    assert {Path(dataset.name(index)).suffix for index in range(296)} == {".JPG", ".jpg"}
    assert dataset[0].image.shape == (504, 378, 3)
