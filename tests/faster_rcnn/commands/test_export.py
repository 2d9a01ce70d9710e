"""`faster-rcnn export` with torchvision models: what it refuses, and that it does so before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from faster_rcnn.graph.publish import publish
from tests.faster_rcnn.commands.conftest import Done

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of a model with three classes and the background."""
    file: Path = tmp_path_factory.mktemp("trained") / "model.pth"
    torch.save(built().state_dict(), file)
    return file


def built(**options: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(
        SMALL, weights=None, weights_backbone=None, num_classes=4, **options
    )
    return model


@pytest.fixture
def refused(tmp_path: Path, run: Callable[..., Done]) -> Callable[..., str]:
    """What the command says when it refuses these options."""

    def refused(*options: object) -> str:
        done = run("export", "--name", "x", "--store", tmp_path / "store", *options)
        assert not (tmp_path / "store").exists()
        return done.refusal

    return refused


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "name what to publish: either a RUN or --torchvision BUILDER"),
        (("runs/x", "--torchvision", SMALL), "either a RUN or --torchvision BUILDER"),
        (("runs/x", "--weights", "COCO_V1"), "--weights belongs to --torchvision; leave it out for a RUN"),
        (("runs/x", "--labels", "l.txt"), "--labels belongs to --torchvision"),
        (("runs/x", "--num-classes", "3"), "--num-classes belongs to --torchvision"),
        (("runs/x", "--checkpoint", "model.pth"), "--checkpoint of a RUN is best or last, not model.pth"),
        (("--torchvision", SMALL), "needs either --weights COCO_V1 or --checkpoint FILE"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--checkpoint", "model.pth"), "needs either"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--num-classes", "4"), "go with --checkpoint FILE"),
        (("--torchvision", SMALL, "--checkpoint", "model.pth"), "does not name its classes; give --labels FILE"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--split", "val"), "need --data; name it"),
        (("--torchvision", SMALL, "--weights", "COCO_V1", "--limit-images", "3"), "need --data; name it"),
        (("--torchvision", SMALL, "--checkpoint", "no.pth", "--labels", "l.txt"), "no.pth does not exist"),
        (("nowhere",), "nowhere does not exist; faster-rcnn train --out nowhere writes it"),
        (("runs/x", "--cuda-fp16", "--provider", "cpu"), "--provider cpu leaves such graphs out; drop one"),
        (("runs/x", "--cuda-fp16", "--precision", "fp16"), "leave out --cuda-fp16"),
        (("runs/x", "--presicion", "fp16"), "unknown option --presicion; did you mean --precision?"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    refused: Callable[..., str], options: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refused(*options)


def test_a_model_needs_a_name(run: Callable[..., Done]) -> None:
    assert "--name is missing; choose the model's name in the store" in run("export", "runs/x").refusal


def test_a_name_that_the_service_would_not_find_is_refused_before_anything_is_read(run: Callable[..., Done]) -> None:
    assert "the service accepts no model 'a b'" in run("export", "nosuch-run", "--name", "a b").refusal


def test_there_must_be_one_label_for_each_class_of_the_checkpoint(
    tmp_path: Path, refused: Callable[..., str], checkpoint: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    message = refused("--torchvision", SMALL, "--checkpoint", checkpoint, "--labels", labels)
    assert message.endswith("has 2 labels, but the detector has 3 classes (without background)")


def test_data_with_a_class_that_the_checkpoint_does_not_know_is_refused(
    tmp_path: Path, refused: Callable[..., str], checkpoint: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("circle\nring\nhat\n")
    message = refused(
        "--torchvision", SMALL, "--checkpoint", checkpoint, "--labels", labels, "--data", "shapes",
    )  # fmt: skip
    assert f"classes that {SMALL} does not know: triangle, square, star, cross; use other data" in message


def test_a_model_that_resizes_every_image_to_one_size_is_refused(tmp_path: Path) -> None:
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
def test_publishing_needs_one_distinct_label_for_each_class(
    tmp_path: Path, labels: list[str] | None, complaint: str
) -> None:
    images = [np.zeros((10, 10, 3), np.uint8)]
    with pytest.raises(ValueError, match=complaint):
        publish(built(), tmp_path, "x", 1, training={}, labels=labels, images=images)
