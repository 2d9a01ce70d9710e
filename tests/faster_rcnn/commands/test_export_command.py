"""scripts/export.py with models of torchvision: what it refuses, and that it does so before any work."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from faster_rcnn.graph.publish import publish

COMMAND = Path(__file__).resolve().parents[3] / "scripts" / "export.py"
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three classes and the background."""
    file: Path = tmp_path_factory.mktemp("trained") / "model.pth"
    torch.save(built().state_dict(), file)
    return file


def built(**options: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(
        SMALL, weights=None, weights_backbone=None, num_classes=4, **options
    )
    return model


def refused(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: object) -> str:
    """What the command says of its last words, in this process, which is spared importing torch once more."""
    words = [COMMAND, "--name", "x", "--store", folder / "store", *options]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(COMMAND), run_name="__main__")
    assert not (folder / "store").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "name what is published: a RUN or --torchvision BUILDER, not both"),
        (("runs/x", "--torchvision", SMALL), "a RUN or --torchvision BUILDER, not both"),
        (("runs/x", "--weights", "COCO_V1"), "--weights belongs to --torchvision; leave it out for a RUN"),
        (("runs/x", "--labels", "l.txt"), "--labels belongs to --torchvision"),
        (("runs/x", "--num-classes", "3"), "--num-classes belongs to --torchvision"),
        (("runs/x", "--checkpoint", "model.pth"), "--checkpoint of a RUN is best or last, not model.pth"),
        (("--torchvision", SMALL), "wants --weights COCO_V1 or --checkpoint FILE, one of them"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--checkpoint", "model.pth"), "one of them"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--num-classes", "4"), "are of --checkpoint FILE"),
        (("--torchvision", SMALL, "--checkpoint", "model.pth"), "does not know its labels; give --labels FILE"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--split", "val"), "are of --data; name it"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--pictures", "3"), "are of --data; name it"),
        (("--torchvision", SMALL, "--checkpoint", "no.pth", "--labels", "l.txt"), "no.pth does not exist"),
    ],
)
def test_options_that_contradict_each_other_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refused(monkeypatch, tmp_path, *options)


def test_labels_must_be_as_many_as_the_checkpoints_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    message = refused(monkeypatch, tmp_path, "--torchvision", SMALL, "--checkpoint", checkpoint, "--labels", labels)
    assert message.endswith("has 2 labels, but the detector has 3 classes (without background)")


def test_data_with_a_class_that_the_checkpoint_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("circle\nring\nhat\n")
    message = refused(
        monkeypatch, tmp_path,
        "--torchvision", SMALL, "--checkpoint", checkpoint, "--labels", labels, "--data", "shapes",
    )  # fmt: skip
    assert f"classes that {SMALL} does not know: triangle, square, star, cross; use other data" in message


def test_a_model_that_gives_every_image_one_size_cannot_be_served(tmp_path: Path) -> None:
    model = built(fixed_size=(320, 240))
    with pytest.raises(ValueError, match=r"every image 320×240 whatever its shape.*instead of fixed_size"):
        publish(model, tmp_path, "x", 1, training={}, labels=["a", "b", "c"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (None, "3 classes without background, labels are for none"),
        (["a"], "3 classes without background, labels are for 1"),
        (["a", "b", "a"], "a appears on lines 1, 3"),
    ],
)
def test_a_model_is_published_with_the_names_of_its_classes(
    tmp_path: Path, labels: list[str] | None, complaint: str
) -> None:
    images = [np.zeros((10, 10, 3), np.uint8)]
    with pytest.raises(ValueError, match=complaint):
        publish(built(), tmp_path, "x", 1, training={}, labels=labels, images=images)
