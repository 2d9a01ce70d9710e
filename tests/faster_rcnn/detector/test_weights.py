"""Initial weights. The files are made from untrained torchvision models: only names and shapes matter."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn

from faster_rcnn.detector import weights
from faster_rcnn.detector.checkpoint import save_state
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.weights import CLASSIFIERS, fetch_weights, load_backbone_weights
from tests.faster_rcnn.lively import lively


def saved(tmp_path: Path, state: Any) -> str:
    torch.save(state, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def classifier(name: str) -> nn.Module:
    torch.manual_seed(7)
    return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize("backbone", sorted(set(CLASSIFIERS) - {"vgg16"}))
def test_the_backbone_gets_the_weights_of_torchvisions_classifier(backbone: str, tmp_path: Path) -> None:
    theirs = classifier(CLASSIFIERS[backbone])
    fetched = fetch_weights(backbone, saved(tmp_path, theirs.state_dict()))
    assert fetched is not None
    detector = lively(backbone, head_units=8)
    load_backbone_weights(detector, fetched)
    expected = theirs.state_dict()
    for name, tensor in detector.backbone.state_dict().items():
        if not name.startswith("fpn."):
            assert torch.equal(tensor, expected[name.removeprefix("body.")]), name


def test_vgg16s_classifier_initialises_fc6_and_fc7_of_a_head_of_the_same_width(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = classifier("vgg16").state_dict()
    # one number per tensor, so that the file is not half a gigabyte
    theirs = {name: torch.tensor(float(place)).expand(one.shape) for place, (name, one) in enumerate(shapes.items())}
    fetched = fetch_weights("vgg16", saved(tmp_path, theirs))
    assert fetched is not None
    with torch.device("meta"):
        detector = FasterRCNN(default_config("vgg16", ("a",)))
    detector.backbone.to_empty(device="cpu")
    detector.head.to_empty(device="cpu")
    load_backbone_weights(detector, fetched)
    assert torch.equal(detector.head.fc6.weight, theirs["classifier.0.weight"])
    assert torch.equal(detector.head.fc7.bias, theirs["classifier.3.bias"])
    assert torch.equal(detector.backbone.state_dict()["features.28.weight"], theirs["features.28.weight"])
    narrow = lively("vgg16", head_units=8)
    before = narrow.head.fc6.weight.clone()
    load_backbone_weights(narrow, fetched)
    assert torch.equal(narrow.head.fc6.weight, before)


@pytest.mark.parametrize(
    ("backbone", "build"),
    [("resnet50_fpn", fasterrcnn_resnet50_fpn), ("mobilenet_v3_large_fpn", fasterrcnn_mobilenet_v3_large_fpn)],
)
def test_the_pyramid_gets_the_weights_of_torchvisions_detector(backbone: str, build: Any, tmp_path: Path) -> None:
    torch.manual_seed(7)
    theirs = build(weights=None, weights_backbone=None).state_dict()
    first = next(iter(theirs.values()))
    # as in the published files: names from before version 0.13, and frozen normalisations
    old = {
        name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "fpn" in name else name: tensor
        for name, tensor in theirs.items()
        if not name.endswith("num_batches_tracked")
    }
    detector = lively(backbone, head_units=8)
    for state in (theirs, {"model": old}):
        fetched = fetch_weights(backbone, saved(tmp_path, state))
        assert fetched is not None
        load_backbone_weights(detector, fetched)
        own = detector.backbone.state_dict()
        assert torch.equal(own["fpn.layer_blocks.1.0.weight"], theirs["backbone.fpn.layer_blocks.1.0.weight"])
        assert torch.equal(next(iter(own.values())), first)
    single = backbone.removesuffix("_fpn")  # without a pyramid only the body is used
    fetched = fetch_weights(single, saved(tmp_path, theirs))
    assert fetched is not None
    assert torch.equal(next(iter(fetched.backbone.values())), first)


@pytest.mark.parametrize("backbone", ["compact", "mobilenet_v3_large_fpn"])
def test_the_backbone_gets_the_weights_of_a_training_run_of_this_project(backbone: str, tmp_path: Path) -> None:
    first = lively(backbone, head_units=8)
    save_state(tmp_path / "checkpoint.pt", first, "joint", 3)
    fetched = fetch_weights(backbone, str(tmp_path))
    assert fetched is not None
    torch.manual_seed(99)
    second = FasterRCNN(default_config(backbone, ("a", "b")))
    load_backbone_weights(second, fetched)
    for (name, one), other in zip(
        first.backbone.state_dict().items(), second.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_an_error_names_the_tensors_that_do_not_fit(tmp_path: Path) -> None:
    theirs = classifier("resnet50").state_dict()
    conv1 = "conv1.weight"
    for state, complaint in (
        (without(theirs, conv1), r"does not hold the weights of resnet50: 1 missing \(conv1.weight\)"),
        (theirs | {"layer3.9.x": theirs[conv1]}, r"1 unknown \(layer3.9.x\)"),
        (
            theirs | {conv1: torch.zeros(64, 1, 7, 7)},
            r"1 of another shape \(conv1.weight\); choose the matching --backbone",
        ),
        ({"features.0.weight": theirs[conv1]}, r"missing \(conv1.weight, bn1.weight, bn1.bias, …\); 1 unknown"),
        ([1, 2], "holds a list, not tensors by name; save a model's state_dict"),
    ):
        with pytest.raises(ValueError, match=complaint):
            fetch_weights("resnet50", saved(tmp_path, state))


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"weights.pth is a page of HTML or XML, so the download failed"):
        fetch_weights("resnet50", str(tmp_path / "weights.pth"))
    with pytest.raises(
        FileNotFoundError, match=r"nowhere.pth does not exist; --weights accepts imagenet, none, or a file"
    ):
        fetch_weights("resnet50", str(tmp_path / "nowhere.pth"))


def test_the_source_none_returns_no_weights_and_compact_has_no_imagenet_weights() -> None:
    assert fetch_weights("resnet50", "none") is None
    with pytest.raises(ValueError, match="there are no ImageNet weights for compact; train it with --weights none"):
        fetch_weights("compact", "imagenet")


def test_a_download_from_a_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/resnet50-00000000.pth"
        silent_weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=address))
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: silent_weights)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(weights, "TIMEOUT", 0.2)
        with pytest.raises(ConnectionError, match=r"cannot be downloaded .*timed out"):
            fetch_weights("resnet50", "imagenet")
    assert socket.getdefaulttimeout() is None


class Unreachable:
    """A substitute for torchvision's weights, at a local address where no server listens."""

    class IMAGENET1K_V1:  # noqa: N801  its name in torchvision
        url = "http://127.0.0.1:9/models/mobilenet_v3_large-00000000.pth"


def test_a_failed_download_names_the_remedy_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConnectionError) as failure:
        fetch_weights("mobilenet_v3_large", "imagenet")
    message = str(failure.value)
    assert message.startswith("http://127.0.0.1:9/models/mobilenet_v3_large-00000000.pth cannot be downloaded (")
    assert message.endswith("download it on another machine and pass --weights FILE, or train with --weights none")
    assert "\n" not in message
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


def test_a_file_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: Unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    theirs = classifier("mobilenet_v3_large").state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs, tmp_path / "checkpoints" / "mobilenet_v3_large-00000000.pth")
    fetched = fetch_weights("mobilenet_v3_large", "imagenet")
    assert fetched is not None
    assert torch.equal(fetched.backbone["features.0.0.weight"], theirs["features.0.0.weight"])
