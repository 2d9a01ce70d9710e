"""Checkpoints, made here from torchvision's own untrained models and saved as users save them."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from faster_rcnn.torchvision_adapter.builders import BUILDERS, checkpoint_model, published_model

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
OLD_NAMES = {"rpn.head.conv.0.0.": "rpn.head.conv."} | {
    f"backbone.fpn.{kind}_blocks.{place}.0.": f"backbone.fpn.{kind}_blocks.{place}."
    for kind in ("inner", "layer")
    for place in range(4)
}


def built(builder: str, classes: int = 4, **options: Any) -> FasterRCNN:
    torch.manual_seed(5)
    options = {"weights": None, "weights_backbone": None, "num_classes": classes} | options
    return torchvision.models.get_model(builder, **options)


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = built(SMALL).state_dict()
    return state


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def uncounted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As saved by a model with frozen normalisations, which count no batches."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def epsilons(model: nn.Module, kind: type) -> set[float]:
    return {module.eps for module in model.modules() if isinstance(module, kind)}


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_tensor_of_a_checkpoint_is_in_the_model(builder: str, tmp_path: Path) -> None:
    state = built(builder).state_dict()
    trained = checkpoint_model(builder, saved(tmp_path, state))
    assert not trained.model.training
    found = trained.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert trained.origin["torchvision"] == builder
    assert trained.origin["checkpoint"] == "model.pth"
    assert trained.origin["batch_norm_epsilon"] == 1e-5
    classes = len(state["roi_heads.box_predictor.cls_score.weight"]) - 1
    assert trained.report[0] == f"model.pth: used {len(state)} tensors: {builder}, {classes} classes and the background"


def in_reference_training(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What torchvision's references/detection/train.py writes; its arguments are not tensors."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=0.9)
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22]).state_dict(),
        "args": argparse.Namespace(model=SMALL, epochs=26, lr_steps=[16, 22], weights=None),
        "epoch": 25,
    }


@pytest.mark.parametrize(
    "wrap",
    [
        in_reference_training,
        lambda state: {"state_dict": state},
        lambda state: {"model_state_dict": state, "loss": 0.1},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["torchvision's references", "state_dict", "model_state_dict", "several processes", "both"],
)
def test_the_usual_wrappers_of_a_state_dict_are_removed(
    small: dict[str, torch.Tensor], tmp_path: Path, wrap: Any
) -> None:
    found = checkpoint_model(SMALL, saved(tmp_path, wrap(small))).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in small.items())


@pytest.mark.parametrize("builder", ["fasterrcnn_resnet50_fpn", SMALL])
def test_the_names_from_before_torchvision_0_13_are_accepted(builder: str, tmp_path: Path) -> None:
    """The published files of COCO_V1 use them."""
    state = built(builder).state_dict()
    old = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in OLD_NAMES if name.startswith(prefix)), "")
        old[OLD_NAMES.get(prefix, "") + name.removeprefix(prefix)] = tensor
    assert old.keys() != state.keys()
    found = checkpoint_model(builder, saved(tmp_path, old)).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_frozen_normalisations_compute_what_the_saved_model_computed(tmp_path: Path) -> None:
    """Torchvision freezes them by a `norm_layer`; the adapter replaces the layers, and the features must agree."""
    model = built(SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    trained = checkpoint_model(SMALL, saved(tmp_path, uncounted(model.state_dict())))
    assert epsilons(trained.model, FrozenBatchNorm2d) == {1e-5}
    assert not epsilons(trained.model, nn.BatchNorm2d)
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = model.eval().backbone(pixels), trained.model.backbone(pixels)
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features)


def test_a_frozen_resnet50_is_assumed_to_be_fine_tuned_from_coco(tmp_path: Path) -> None:
    file = saved(tmp_path, uncounted(built("fasterrcnn_resnet50_fpn").state_dict()))
    assumed = checkpoint_model("fasterrcnn_resnet50_fpn", file)
    assert epsilons(assumed.model, FrozenBatchNorm2d) == {0.0}  # overwrite_eps(model, 0.0) in torchvision's builder
    assert assumed.origin["batch_norm_epsilon"] == 0.0
    assert any("assumed: --batch-norm-epsilon 0, " in line and "give 1e-5" in line for line in assumed.report)
    given = checkpoint_model("fasterrcnn_resnet50_fpn", file, epsilon=1e-5)
    assert epsilons(given.model, FrozenBatchNorm2d) == {1e-5}
    assert not any("epsilon" in line for line in given.report)


def test_v2_has_batch_normalisation_even_if_no_batches_were_counted(tmp_path: Path) -> None:
    state = uncounted(built("fasterrcnn_resnet50_fpn_v2").state_dict())
    trained = checkpoint_model("fasterrcnn_resnet50_fpn_v2", saved(tmp_path, state))
    assert epsilons(trained.model, nn.BatchNorm2d) == {1e-5}
    assert not epsilons(trained.model, FrozenBatchNorm2d)


def test_the_number_of_classes_comes_from_the_predictor(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = saved(tmp_path, small)
    assert checkpoint_model(SMALL, file, num_classes=4).model.roi_heads.box_predictor.cls_score.out_features == 4
    with pytest.raises(ValueError, match="has 4 classes with background, not 3; leave out --num-classes"):
        checkpoint_model(SMALL, file, num_classes=3)


def test_an_epsilon_without_frozen_normalisations_is_refused(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no frozen normalisation; leave out --batch-norm-epsilon"):
        checkpoint_model(SMALL, saved(tmp_path, small), epsilon=0.0)


@pytest.mark.parametrize(
    ("builder", "other", "advice"),
    [
        ("fasterrcnn_resnet50_fpn", SMALL, "give --torchvision fasterrcnn_resnet50_fpn"),
        ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "give --torchvision fasterrcnn_resnet50_fpn_v2"),
        (SMALL, "fasterrcnn_resnet50_fpn", f"give --torchvision fasterrcnn_mobilenet_v3_large_fpn or {SMALL}"),
    ],
)
def test_the_error_for_another_builders_checkpoint_names_that_builder(
    builder: str, other: str, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"does not fit {other}: \d+ missing \(backbone\.") as caught:
        checkpoint_model(other, saved(tmp_path, built(builder).state_dict()))
    assert str(caught.value).endswith(advice)
    assert "\n" not in str(caught.value)


def test_another_number_of_anchors_needs_the_ratios(tmp_path: Path) -> None:
    """Two anchors per location; the builder has three."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0),) * 5)
    file = saved(tmp_path, built("fasterrcnn_resnet50_fpn", rpn_anchor_generator=anchors).state_dict())
    with pytest.raises(
        ValueError,
        match=r"of another shape \(rpn\.head\.cls_logits\.weight.*2 anchors at a location; give --anchor-sizes",
    ):
        checkpoint_model("fasterrcnn_resnet50_fpn", file)
    trained = checkpoint_model("fasterrcnn_resnet50_fpn", file, settings={"aspect_ratios": ((0.5, 1.0),)})
    assert trained.model.rpn.anchor_generator.aspect_ratios == ((0.5, 1.0),) * 5


def test_an_old_name_with_another_shape_is_reported_too(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = dict(small)
    del state["rpn.head.conv.0.0.weight"]
    state["rpn.head.conv.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"1 of another shape \(rpn\.head\.conv\.0\.0\.weight\)"):
        checkpoint_model(SMALL, saved(tmp_path, state))


def test_a_pickled_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"contains a pickled .*FasterRCNN.*save only model\.state_dict\(\)"):
        checkpoint_model(SMALL, saved(tmp_path, built(SMALL)))


def test_a_file_that_is_not_a_checkpoint_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        checkpoint_model(SMALL, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(ValueError, match=r"is broken or was not written by torch.save"):
        checkpoint_model(SMALL, tmp_path / "text.pth")
    with pytest.raises(ValueError, match="so it is not a torchvision Faster R-CNN"):
        checkpoint_model(SMALL, saved(tmp_path, nn.Linear(2, 3).state_dict()))


def test_published_weights_come_from_the_cache_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    state = uncounted(built(SMALL, classes=91).state_dict())
    file = cache / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    torch.save(state, file)
    trained = published_model(SMALL, "COCO_V1")
    assert {name: value for name, value in trained.origin.items() if name != "settings"} == {
        "torchvision": SMALL, "weights": "COCO_V1", "batch_norm_epsilon": 1e-5,
    }  # fmt: skip
    assert trained.origin["settings"]["min_size"] == {"value": 320, "source": "torchvision's default"}
    found = trained.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert trained.labels is not None
    assert len(trained.labels) == len(set(trained.labels)) == 90
    assert trained.labels[:12] == (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "N/A 12",
    )  # fmt: skip
    file.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"does not hold the weights COCO_V1 of .*; remove it and try again"):
        published_model(SMALL, "COCO_V1")


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(no route to host\); download it elsewhere and"):
        published_model(SMALL, "COCO_V1")
