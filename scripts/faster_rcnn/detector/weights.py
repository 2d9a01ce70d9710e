"""Weights that training starts from: torchvision's of ImageNet, or a file in torchvision's names or of this project.

Fetching and loading are two steps, so that what is not there or does not fit shows before any data is read.
"""

import argparse
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.checkpoint import NAME
from faster_rcnn.detector.detector import FasterRCNN

State = dict[str, Tensor]

# Which of torchvision's classifiers a backbone is cut from.
CLASSIFIERS = {
    "mobilenet_v3_large": "mobilenet_v3_large",
    "mobilenet_v3_large_fpn": "mobilenet_v3_large",
    "resnet50": "resnet50",
    "resnet50_fpn": "resnet50",
    "vgg16": "vgg16",
}
# VGG-16's fully connected layers, which go into the head (Girshick 2015, section 2.1).
FC_LAYERS = {"classifier.0": "fc6", "classifier.3": "fc7"}
WRAPPINGS = ("detector", "model", "state_dict", "model_state_dict")  # this project's, torchvision's, the customary ones
PREFIXES = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel's, torch.compile's, the customary one
TIMEOUT = 10.0  # seconds without an answer after which the network counts as absent
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Weights:
    """Tensors by the names of a backbone's state, and of a head's where the source has them."""

    backbone: State
    head: State = field(default_factory=dict)


def fetch_weights(backbone: str, source: str) -> Weights | None:
    """What a backbone starts from; None for `none`.

    backbone: a key of BACKBONES;  source: "imagenet" (torchvision's IMAGENET1K_V1, from torch.hub's cache or the
    network), "none", or a file: of torchvision's classifier or detector, or a checkpoint or run of this project.
    Raises ConnectionError if the network does not give them, FileNotFoundError if there is no such file, ValueError if
    the tensors are not this backbone's; each names the remedy.
    """
    if source == "none":
        return None
    state = _imagenet(backbone) if source == "imagenet" else _read(Path(source))
    return Weights(_of_backbone(state, backbone, source), _of_head(state, backbone))


def load_backbone_weights(detector: FasterRCNN, weights: Weights) -> None:
    """Puts fetched weights into a detector; fc6 and fc7 only where its head is as wide as theirs."""
    detector.backbone.load_state_dict(weights.backbone, strict=False)  # `fetch_weights` has compared the names
    own = detector.head.state_dict()
    if all(own[name].shape == tensor.shape for name, tensor in weights.head.items()):
        detector.head.load_state_dict(weights.head, strict=False)


def download(url: str, remedy: str) -> Path:
    """A published file of weights, from torch.hub's cache or the network.

    Raises ConnectionError if the network does not give it; the message ends with the remedy.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not file.is_file():
        start_of_hash = file.stem.split("-")[-1]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _impatient():
                torch.hub.download_url_to_file(url, str(file), start_of_hash, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            raise ConnectionError(f"{url} cannot be downloaded ({error}); {remedy}") from error
    return file


def read_tensors(file: Path) -> State:
    """The tensors of a file by their names: a state dict, or one in a checkpoint, of a model in one process or several.

    Raises FileNotFoundError, and ValueError for what is no such file; only tensors and plain values are unpickled.
    """
    try:
        # the reference training of torchvision keeps its command line beside the tensors
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is not there") from error
    except Exception as error:  # torch raises a dozen kinds for a file that is not its own
        if unsafe := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{file} holds a pickled {unsafe[1]}, which may run code when it is read; "
                "save model.state_dict() alone, where the file was made"
            ) from error
        raise ValueError(f"{file} is not a file of weights that torch.save wrote, or a broken one") from error
    for wrapping in WRAPPINGS:
        if isinstance(state, dict) and isinstance(state.get(wrapping), dict):
            state = state[wrapping]
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__} and not tensors by name; save a model's state_dict()")
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _imagenet(backbone: str) -> State:
    """The weights of torchvision's classifier, downloaded unless torch.hub has them."""
    if backbone not in CLASSIFIERS:
        raise ValueError(f"{backbone} has no imagenet weights; train it with --weights none")
    url = torchvision.models.get_model_weights(CLASSIFIERS[backbone]).IMAGENET1K_V1.url
    return _read(download(url, "download it elsewhere and give --weights FILE, or train with --weights none"))


@contextmanager
def _impatient() -> Iterator[None]:
    """Ends a connection that does not answer; by default it is waited for without an end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> State:
    """The tensors of a file or a run's folder by their names."""
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; --weights takes imagenet, none, or a file of weights")
    return read_tensors(file)


def _of_backbone(state: State, backbone: str, source: str) -> State:
    """The tensors under the backbone's own names.

    Raises ValueError if one is missing, has another shape, or belongs to no model that the backbone is cut from.
    """
    with torch.device("meta"):
        wanted = BACKBONES[backbone]().state_dict()
        others = _classifier_names(backbone)
    if any(name.startswith("backbone.") for name in state):
        state = {name.removeprefix("backbone."): one for name, one in state.items() if name.startswith("backbone.")}
    given = {_own_name(name, backbone): tensor for name, tensor in state.items()}
    if not any(name.startswith("fpn.") for name in given):
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("fpn.")}
    elif not any(name.startswith("fpn.") for name in wanted):
        given = {name: tensor for name, tensor in given.items() if not name.startswith("fpn.")}
    counted = "num_batches_tracked"  # which frozen normalisations do not have
    faults = {
        "missing": [name for name in wanted if name not in given and not name.endswith(counted)],
        "unknown": [name for name in given if name not in wanted and name not in others],
        "of another shape": [name for name in wanted if name in given and given[name].shape != wanted[name].shape],
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names)
        raise ValueError(f"{source} does not hold the weights of {backbone}: {told}; choose the --backbone they are of")
    return {name: given[name] for name in wanted if name in given}


def _of_head(state: State, backbone: str) -> State:
    if backbone != "vgg16":
        return {}
    return {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in FC_LAYERS.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state
    }


def _classifier_names(backbone: str) -> set[str]:
    """All names of the classifier that a backbone is cut from, as the backbone would call them."""
    if backbone not in CLASSIFIERS:
        return set()
    classifier = torchvision.models.get_model(CLASSIFIERS[backbone], weights=None)
    return {_own_name(name, backbone) for name in classifier.state_dict()}


def _own_name(name: str, backbone: str) -> str:
    """A tensor's name in the backbone from its name in torchvision's classifier or in a detector's backbone."""
    if name.startswith("fpn."):  # torchvision's published detectors have the names of before its version 0.13
        return re.sub(r"_blocks\.(\d+)\.(weight|bias)$", r"_blocks.\1.0.\2", name)
    inner = name.removeprefix("body.")
    if inner != name and inner[0].isdigit():
        inner = f"features.{inner}"  # torchvision's MobileNet detectors have the blocks without the classifier's name
    return f"body.{inner}" if backbone.endswith("_fpn") else inner


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
