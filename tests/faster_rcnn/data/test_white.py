"""The value that means white in a data set, and its way from the training images to the published model."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import faster_rcnn
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.data.white import find_white, use_white, white_in, white_of
from faster_rcnn.detector.checkpoint import NAME, save_state
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.prediction import prepare_image
from faster_rcnn.proposal_sources.sources import propose_for
from faster_rcnn.proposal_sources.table import ProposalTable
from faster_rcnn.training.run import begin_run
from faster_rcnn.training.splits import open_splits
from service.command_line import main
from service.images.depth import WHITE, ValueRange
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder
from tests.faster_rcnn.lively import lively
from tests.service.images.png16 import png16

EMBEDDED = Path(__file__).parents[3] / "model_store" / "shapes" / "1"


def deep(largest: int, *channels: int) -> bytes:
    """A PNG of 100 × 60 pixels with 16 bits, whose values end at `largest`."""
    values = np.random.default_rng(0).integers(0, largest, (60, 100, *channels))
    values[0, 0] = largest
    return png16(values)


def plain() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (100, 60), "red").save(out, "PNG")
    return out.getvalue()


def folder_of(folder: Path, **files: bytes) -> str:
    """A data set of these images; each has one object."""
    for name, data in files.items():
        (folder / f"{name}.png").write_bytes(data)
    images = [image_entry(place, f"{name}.png") for place, name in enumerate(files)]
    annotations = [annotation_entry(place + 1, place) for place in range(len(files))]
    source = write_coco_folder(folder, images, annotations)
    shutil.copy(folder / "annotations" / "train.json", folder / "annotations" / "val.json")
    return source


@given(st.integers(0, WHITE))
def test_white_is_the_next_power_of_two_less_one(largest: int) -> None:
    white = white_of([ValueRange(16, 7), ValueRange(16, largest)])
    assert white in [2**bits - 1 for bits in range(8, 17)]
    assert largest <= white
    assert white == 255 or white < 2 * largest  # half of it would not suffice


@pytest.mark.contract("2.4")
def test_the_white_of_a_data_set_is_found_and_said(tmp_path: Path) -> None:
    source = folder_of(tmp_path, a=plain(), b=deep(3000, 3), c=deep(900), d=deep(100), e=b"no image")
    found = find_white(open_dataset(source, "train"))
    assert found.white == 4095  # 2 ** 11 = 2048 < 3000 < 4096
    assert "3 of 5 images have more than 8 bits per channel; their largest value is 3,000, so 4,095" in found.text
    assert "1 of them use less than 1/16 of that range" in found.text  # 100 < 4095 / 16 < 900
    assert find_white(Shapes("train")) == (WHITE, "")


@pytest.mark.contract("2.4")
def test_the_check_compares_validation_images_with_the_white_of_the_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path, a=deep(1000), b=deep(4000, 3), c=deep(20), d=plain())
    for split, images in (("train", "ad"), ("val", "bcd")):  # white is 1023; 4000 > 1023, and 20 < 1023 / 16
        document = json.loads((tmp_path / "annotations" / f"{split}.json").read_text())
        document["images"] = [one for one in document["images"] if one["file_name"][0] in images]
        kept = {one["id"] for one in document["images"]}
        document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(document))
    assert main(["check", "--data", source, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "train: 1 of 2 images have more than 8 bits per channel; their largest value is 1,000, so 1,023" in said
    assert "val: 2 of 3 images have more than 8 bits per channel; their largest value is 4,000, and white is" in said
    assert "white is 1,023, as in the training split; warning: 1 of them have values above white" in said
    assert "warning: 1 of them use less than 1/16 of that range" in said


@pytest.mark.contract("2.4")
def test_proposals_of_an_rpn_are_computed_with_its_own_white(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path, a=deep(1000))  # alone, 1023 would be taken for white
    for name, white in (("one", 4095), ("two", 255)):
        (tmp_path / name).mkdir()
        small = {"resize": ResizeRule(64, 128), "proposals": ProposalLimits(50, 10)}
        save_state(tmp_path / name / NAME, lively("compact", white=white, **small), "joint", 1)
    seen = []

    def spy(dataset: Dataset, *rest: Any) -> ProposalTable:
        seen.append(white_in(dataset))
        return propose_for(dataset, *rest)

    monkeypatch.setattr("faster_rcnn.commands.propose.propose_for", spy)
    command = ["propose", "--data", source, "--device", "cpu", "--out", str(tmp_path / "out.npz")]
    assert main([*command, "--source", f"rpn:{tmp_path / 'one'}"]) == 0
    assert main([*command, "--source", "sliding-window"]) == 0
    assert seen == [4095, 1023]
    both = [f"rpn:{tmp_path / name}" for name in ("one", "two")]
    assert main(["evaluate", "--proposals", both[0], "--proposals", both[1], "--data", source]) == 1
    assert "trained with different values for white" in capsys.readouterr().err


def test_images_of_8_bits_are_not_read(tmp_path: Path) -> None:
    source = folder_of(tmp_path, a=plain())
    assert find_white(open_dataset(source, "train")) == (WHITE, "")


@pytest.mark.contract("2.4")
def test_training_records_white_and_decodes_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder_of(tmp_path, a=deep(4000, 3), b=deep(1000))
    options = {"data": source, "iterations": 1, "batch_size": 1, "workers": 0}
    record = begin_run(tmp_path / "run", options, "faster-rcnn train", "cpu")
    assert record.detector_config.white == 4095
    assert "so 4,095 is taken for white (--white of train and export sets another value)" in capsys.readouterr().out
    for dataset in open_splits(record)[:2]:
        assert dataset[0].image.max() == 249  # 255 · 4000 / 4095 = 249.08
        assert dataset[1].image.max() == 62  # 255 · 1000 / 4095 = 62.27
    chosen = begin_run(tmp_path / "run", options | {"white": 1023}, "faster-rcnn train", "cpu")
    assert chosen.detector_config.white == 1023


def test_a_detector_from_before_white_takes_all_16_bits() -> None:
    config = DetectorConfig(labels=("thing",)).to_dict()
    del config["white"]
    assert DetectorConfig.from_dict(config).white == WHITE


def test_a_predictor_decodes_by_the_detectors_white_whatever_the_data_set_has(tmp_path: Path) -> None:
    source = folder_of(tmp_path, a=deep(1023, 3))
    dataset = open_checked(source, "train", white=WHITE)
    assert white_in(dataset) == WHITE
    assert dataset[0].image.max() == 3  # 1023 // 256
    detector = lively("compact", resize=ResizeRule(64, 128), white=1023)
    assert prepare_image(detector, dataset[0]).batch.images.max() > 200
    use_white(dataset, None)
    assert white_in(dataset) == 1023


@pytest.mark.contract("2.4")
@pytest.mark.parametrize("white", [1023, 4095])
@pytest.mark.parametrize("grey", [False, True])
def test_a_file_of_10_or_12_bits_has_the_boxes_of_the_8_bit_image(white: int, grey: bool, tmp_path: Path) -> None:
    """The embedded model with another white."""
    folder = tmp_path / "shapes" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to(EMBEDDED / "model.onnx")
    card = json.loads((EMBEDDED / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"white": white}))
    with Image.open(EMBEDDED / "example.jpg") as image:
        levels = np.asarray(image.convert("L" if grey else "RGB"))
    data = png16(np.rint(levels.astype(float) * white / 255))
    fitting, other = faster_rcnn.open_model(folder), faster_rcnn.open_model(EMBEDDED)
    expected, found = fitting.detect(levels), fitting.detect(data)
    assert len(expected.boxes) > 3
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.1)
    assert found.warnings == ()
    assert other.detect(data).warnings == ("nearly_black",)
