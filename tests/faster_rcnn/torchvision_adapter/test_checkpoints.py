"""Checkpoints as training programs write them. Only the names and the first values of the tensors matter."""

import argparse
import os
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from faster_rcnn.torchvision_adapter.builders import Trained, checkpoint_model
from faster_rcnn.torchvision_adapter.checkpoints import PREDICTOR, read_model
from faster_rcnn.torchvision_adapter.settings import SETTINGS, in_words, settings_of

BUILDER = "fasterrcnn_mobilenet_v3_large_320_fpn"
State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    model = torchvision.models.get_model(BUILDER, weights=None, weights_backbone=None, num_classes=4)
    return dict(model.state_dict())


SHORT: State = {PREDICTOR: torch.ones(4, 2), "backbone.fpn.x.weight": torch.full((2,), 7.0)}
OTHER: State = {name: tensor + 1 for name, tensor in SHORT.items()}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def under(prefix: str, state: State = SHORT) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (SHORT, ""),
        (under("_orig_mod."), "_orig_mod"),
        (under("module._orig_mod."), "module._orig_mod"),
        (under("_orig_mod.module."), "_orig_mod.module"),
        ({"state_dict": under("model.") | {"criterion.weight": torch.ones(3)}}, "state_dict.model"),
        ({"state_dict": under("net._orig_mod.module.")}, "state_dict.net._orig_mod.module"),
        ({"state_dict": under("detector.model."), "epoch": 3}, "state_dict.detector.model"),
        ({"a": {"b": [{"model": OrderedDict(SHORT)}]}}, "a.b.0.model"),
        ({"ema": under("module."), "updates": 9}, "ema.module"),
        (under("module.") | {"n_averaged": torch.tensor(4)}, "module"),
        ({name.replace("fpn.", "fpn._orig_mod."): tensor for name, tensor in SHORT.items()}, ""),
        ({"model": {name: tensor.numpy() for name, tensor in SHORT.items()}}, "model"),
        ({"backbone": {"fpn": {"x.weight": SHORT["backbone.fpn.x.weight"]}}, PREDICTOR: SHORT[PREDICTOR]}, ""),
    ],
)
@pytest.mark.contract("6.7")
def test_the_model_is_found_under_any_prefix(content: Any, place: str, tmp_path: Path) -> None:
    found = read_model(saved(tmp_path, content))
    assert found.place == place
    assert found.state.keys() == SHORT.keys()
    assert all(torch.equal(tensor, SHORT[name]) for name, tensor in found.state.items())
    assert found.report[0] == "model.pth: used 2 tensors" + (f" under {place}" if place else "")


def test_what_is_ignored_is_listed_with_its_number(tmp_path: Path) -> None:
    momenta = {number: {"momentum_buffer": torch.ones(1)} for number in range(5)}
    content = {
        "state_dict": under("model.") | {"loss.weight": torch.ones(3)},
        "optimizer": {"state": momenta},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }
    report = read_model(saved(tmp_path, content)).report
    assert report[-1] == "ignored: optimizer (5 tensors), state_dict.loss.weight, epoch, args"


@pytest.mark.parametrize(("use", "value"), [(None, 1.0), ("model", 1.0), ("ema", 2.0), ("model_ema.module", 2.0)])
def test_of_model_and_ema_the_one_that_is_used_is_said(use: str | None, value: float, tmp_path: Path) -> None:
    file = saved(tmp_path, {"model": SHORT, "model_ema": under("module.", OTHER) | {"n_averaged": torch.tensor(2)}})
    found = read_model(file, use)
    assert float(found.state[PREDICTOR][0, 0]) == value
    place, other = ("model", "model_ema.module") if value == 1.0 else ("model_ema.module", "model")
    assert any(line.startswith(f"used {place}, ") and f"not {other};" in line for line in found.report)


def test_two_models_of_the_same_kind_need_a_choice(tmp_path: Path) -> None:
    file = saved(tmp_path, {"first": SHORT, "second": OTHER})
    with pytest.raises(ValueError, match=r"several models: first \(model\), second \(model\); choose one with --use"):
        read_model(file)
    assert read_model(file, "second").place == "second"
    with pytest.raises(ValueError, match="no model for --use ema; it holds first"):
        read_model(file, "ema")
    assert read_model(saved(tmp_path, {"first": SHORT, "second": SHORT})).place == "first"  # the same tensors


def test_averaged_weights_alone_are_used_and_said(tmp_path: Path) -> None:
    report = read_model(saved(tmp_path, {"ema_state_dict": SHORT})).report
    assert "these are averaged weights (EMA); model.pth holds no others" in report


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted_with_a_line(kind: torch.dtype, tmp_path: Path) -> None:
    found = read_model(saved(tmp_path, {name: tensor.to(kind) for name, tensor in SHORT.items()}))
    assert all(torch.equal(tensor, SHORT[name]) for name, tensor in found.state.items())
    assert f"converted 2 tensors from {str(kind).removeprefix('torch.')} to float32" in found.report


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    save_file(under("model."), tmp_path / "model.safetensors", metadata={"format": "pt", "min_size": "300"})
    found = read_model(tmp_path / "model.safetensors")
    assert found.place == "model"
    assert found.content["metadata"] == {"min_size": "300"}
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(ValueError, match="is a damaged safetensors file; copy or download it again"):
        read_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_tensors_are_accepted(zipped: bool, tmp_path: Path) -> None:
    content = {
        "model": SHORT,
        "best": np.float64(0.5),
        "step": np.int64(-7),
        "losses": np.array([[1.0, 2.0], [3.0, 4.0]], order="F"),
        "names": np.array(["a", None], object),
        "args": argparse.Namespace(out=PurePosixPath("runs/1"), sizes=np.arange(3, dtype=">i4")),
    }
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    found = read_model(tmp_path / "model.pth").content
    assert (found["best"], found["step"], found["names"]) == (0.5, -7, None)
    assert found["losses"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found["args"]["out"] == "runs/1"
    assert found["args"]["sizes"].tolist() == [0, 1, 2]


class Call:
    """Unpickles as the result of a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, np.load])
@pytest.mark.contract("6.7")
def test_a_file_that_names_a_function_is_refused_and_nothing_runs(function: Any, zipped: bool, tmp_path: Path) -> None:
    target = tmp_path / "made"
    argument = f"__import__('os').mkdir({str(target)!r})" if function is eval else str(target)
    content = {"model": SHORT, "more": Call(function, argument)}
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"contains a pickled \S+, which could run code .*save only model.state_dict"):
        read_model(tmp_path / "model.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a page of HTML"),
        (b'{"weight_map": {}}', "is JSON, not tensors"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"no tensors", "is broken or was not written by torch.save"),
    ],
)
def test_other_files_are_named(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_model(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maskrcnn_resnet50_fpn", "torchvision's Mask R-CNN"),
        ("keypointrcnn_resnet50_fpn", "torchvision's Keypoint R-CNN"),
        ("retinanet_resnet50_fpn", "torchvision's RetinaNet"),
        ("ssd300_vgg16", "torchvision's SSD or SSDLite"),
        ("ssdlite320_mobilenet_v3_large", "torchvision's SSD or SSDLite"),
        ("fcos_resnet50_fpn", "torchvision's FCOS"),
        ("resnet50", "an image classifier"),
    ],
)
def test_torchvisions_other_models_are_named(name: str, words: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        names = torchvision.models.get_model(name, **{"weights": None} | (
            {} if name == "resnet50" else {"weights_backbone": None}
        )).state_dict()  # fmt: skip
    with pytest.raises(ValueError, match=f"has the tensors of {words}; this command reads the Faster R-CNN"):
        read_model(saved(tmp_path, {f"model.{one}": torch.ones(1) for one in names}))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["backbone.bottom_up.res2.0.conv1.weight", PREDICTOR], "Detectron2"),
        (["neck.lateral_convs.0.conv.weight", "roi_head.bbox_head.fc_cls.weight"], "MMDetection"),
        (["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"], "a YOLO model"),
        (["transformer.encoder.layers.0.linear1.weight", "class_embed.weight"], "DETR"),
        (["roi_heads.box.predictor.cls_score.weight"], "maskrcnn-benchmark"),
    ],
)
def test_other_frameworks_are_named(names: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has the tensors of {words}"):
        read_model(saved(tmp_path, {name: torch.ones(1) for name in names}))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.tensor([float("nan"), 1.0]), "has NaN or infinity in 1 of its tensors"),
        (torch.ones(2, dtype=torch.int8), "has whole numbers .*save the model's float weights"),
        (torch.ones(2, dtype=torch.complex64), "is quantised, sparse or complex"),
    ],
)
def test_tensors_that_are_not_finite_floats_are_refused(value: torch.Tensor, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_model(saved(tmp_path, SHORT | {"backbone.fpn.x.weight": value}))


def built(state: State, folder: Path, args: Any = None, **options: Any) -> Trained:
    return checkpoint_model(BUILDER, saved(folder, {"model": state, "args": args}), **options)


@pytest.mark.contract("6.8")
def test_settings_come_from_options_the_file_and_torchvision_and_are_said(state: State, tmp_path: Path) -> None:
    args = argparse.Namespace(min_size=256, box_nms_thresh=np.float64(0.4), rpn_score_thresh=None, max_size="auto")
    trained = built(state, tmp_path, args, settings={"box_score_thresh": 0.2, "box_detections_per_img": 7})
    model = trained.model
    assert (model.transform.min_size, model.transform.max_size) == ((256,), 640)
    assert (model.roi_heads.nms_thresh, model.roi_heads.score_thresh, model.roi_heads.detections_per_img) == (
        0.4,
        0.2,
        7,
    )
    assert trained.origin["settings"]["min_size"] == {"value": 256, "source": "args.min_size"}
    assert trained.origin["settings"]["box_score_thresh"] == {"value": 0.2, "source": "option"}
    assert trained.origin["settings"]["max_size"] == {"value": 640, "source": "torchvision's default"}
    assert len(trained.origin["settings"]) == 14
    text = "\n".join(trained.report)
    assert "from the file: --min-size 256 (args.min_size) --box-nms-thresh 0.4 (args.box_nms_thresh)" in text
    assert "given: --box-score-thresh 0.2 --box-detections-per-img 7" in text
    assert "assumed, torchvision's defaults: --max-size 640 --image-mean 0.485,0.456,0.406" in text
    assert "args.max_size = auto cannot be used; --max-size sets it" in text


def test_a_setting_that_the_file_gives_twice_needs_an_option(state: State, tmp_path: Path) -> None:
    args = {"min_size": 300, "model": {"min_size": 400}}
    with pytest.raises(ValueError, match=r"args.min_size = 300, args.model.min_size = 400; choose with --min-size"):
        built(state, tmp_path, args)
    assert built(state, tmp_path, args, settings={"min_size": 320}).model.transform.min_size == (320,)


def test_anchors_can_be_set(state: State, tmp_path: Path) -> None:
    sizes = ((16.0, 32.0, 64.0, 128.0, 256.0),)
    anchors = built(state, tmp_path, settings={"anchor_sizes": sizes}).model.rpn.anchor_generator
    assert anchors.sizes == sizes * 3
    with pytest.raises(ValueError, match="the anchor sizes are for 2 maps, the model has 3"):
        built(state, tmp_path, settings={"anchor_sizes": sizes * 2})


def test_a_warning_names_the_builder_in_the_files_arguments(state: State, tmp_path: Path) -> None:
    """Both builders have the same tensors, and other settings."""
    report = built(state, tmp_path, argparse.Namespace(model="fasterrcnn_mobilenet_v3_large_fpn")).report
    assert any(
        line.startswith("warning: the arguments in the file name fasterrcnn_mobilenet_v3_large_fpn") for line in report
    )


def test_sizes_that_contradict_each_other_are_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--min-size 800 exceeds --max-size 640; give both"):  # 640: of the builder
        built(state, tmp_path, {"min_size": 800})


def test_neither_an_optimisers_tensors_nor_extra_ones_are_a_model(tmp_path: Path) -> None:
    extra = {"loss.transformer.encoder.weight": torch.ones(1)}
    found = read_model(saved(tmp_path, {"momentum_buffers": OTHER, "model": SHORT | extra}))
    assert found.place == "model"
    assert found.report[-1] == "ignored: model.loss.transformer.encoder.weight, " + ", ".join(
        f"momentum_buffers.{name}" for name in sorted(OTHER)
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("min_size", "0"), ("min_size", "inf"), ("max_size", "6.5"), ("box_nms_thresh", "1.1"),
        ("box_score_thresh", "nan"),
        ("image_std", "1,0,1"), ("image_mean", "0.5"), ("bbox_reg_weights", "1,1,1,x"), ("anchor_sizes", "-3"),
        ("aspect_ratios", ""),
    ],
)  # fmt: skip
def test_values_that_no_model_can_have_are_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|does not have|is not a list"):
        SETTINGS[name].convert(text)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_printed_value_is_accepted_by_its_option(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model("fasterrcnn_mobilenet_v3_large_fpn", weights=None, weights_backbone=None)
    value = settings_of(model)[name]
    read = SETTINGS[name].convert(in_words(value).strip("'"))
    assert read == (value if name not in ("anchor_sizes", "aspect_ratios") else value[:1])  # the same for every map
