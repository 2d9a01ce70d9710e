"""Initial weights for training: torchvision's ImageNet weights, or a file from torchvision or this project.

Fetching and loading are separate steps, so that missing or unsuitable weights are reported before any data is read.
"""

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.checkpoint import NAME
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.tensor_files import read_content

State = dict[str, Tensor]

# The torchvision classifier that contains each backbone.
CLASSIFIERS = {
    "mobilenet_v3_large": "mobilenet_v3_large",
    "mobilenet_v3_large_fpn": "mobilenet_v3_large",
    "resnet50": "resnet50",
    "resnet50_fpn": "resnet50",
    "vgg16": "vgg16",
}
# VGG-16's fully connected layers, which initialise the head (Girshick 2015, section 2.1).
FC_LAYERS = {"classifier.0": "fc6", "classifier.3": "fc7"}
# Keys under which checkpoints keep a state dict: this project's, torchvision's, and two other common ones.
STATE_KEYS = ("detector", "model", "state_dict", "model_state_dict", "model_ema", "ema_state_dict", "ema")
# Prefixes of names: DistributedDataParallel's, torch.compile's, and another common one.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "detector.")
COUNTER = "n_averaged"  # AveragedModel's, beside the tensors
TIMEOUT = 10.0  # seconds without data before a download is aborted
SHOWN = 3  # number of tensor names listed in a message


@dataclass(frozen=True)
class Weights:
    """Tensors for a backbone, and for a head if the source has them, under the names of their state dicts."""

    backbone: State
    head: State = field(default_factory=dict)


def fetch_weights(backbone: str, source: str) -> Weights | None:
    """The initial weights of a backbone; None for the source "none".

    backbone: a key of BACKBONES;  source: "imagenet" (torchvision's IMAGENET1K_V1, from torch.hub's cache or the
    network), "none", or a path: the weights of a torchvision classifier or detector, or a checkpoint or run folder of
    this project.
    Raises ConnectionError if the download fails, FileNotFoundError if the file does not exist, ValueError if the
    tensors do not fit this backbone; each message says what to do.
    """
    if source == "none":
        return None
    state = _imagenet(backbone) if source == "imagenet" else _read(Path(source))
    return Weights(_backbone_tensors(state, backbone, source), _head_tensors(state, backbone))


def load_backbone_weights(detector: FasterRCNN, weights: Weights) -> None:
    """Loads fetched weights into a detector, but fc6 and fc7 only if the head has the same width."""
    detector.backbone.load_state_dict(weights.backbone, strict=False)  # `fetch_weights` has checked the names
    own = detector.head.state_dict()
    if all(own[name].shape == tensor.shape for name, tensor in weights.head.items()):
        detector.head.load_state_dict(weights.head, strict=False)


def download(url: str, remedy: str) -> Path:
    """The local file of published weights, which is downloaded unless torch.hub's cache has it.

    Raises ConnectionError if the download fails; its message ends with `remedy`, which says what to do instead.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not file.is_file():
        start_of_hash = file.stem.split("-")[-1]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _network_timeout():
                torch.hub.download_url_to_file(url, str(file), start_of_hash, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, HTTPException) as error:
            raise ConnectionError(f"{url} cannot be downloaded{_reason(error, file.parent)}; {remedy}") from error
    return file


def _reason(error: Exception, folder: Path) -> str:
    """Why a download has failed: the network, or `folder`, into which it is saved."""
    cause = getattr(error, "reason", error)  # urllib wraps the cause
    words = getattr(cause, "strerror", None) or str(cause)
    return f" to {folder} ({words})" if isinstance(error, OSError) and error.filename is not None else f" ({words})"


def read_tensors(file: Path) -> State:
    """Reads the tensors of a file that holds a state dict, or a checkpoint that contains one.

    Prefixes that wrappers such as DistributedDataParallel add to the names are removed. Nothing is unpickled that
    could run code.
    Returns the tensors by name. Raises FileNotFoundError if the file does not exist, ValueError if it holds anything
    else.
    """
    state = read_content(file)
    while isinstance(state, dict) and (
        key := next((one for one in STATE_KEYS if isinstance(state.get(one), dict)), "")
    ):
        state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, not tensors by name; save a model's state_dict()")
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and name != COUNTER}
    while tensors and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in tensors)), "")):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _imagenet(backbone: str) -> State:
    """The ImageNet weights of torchvision's classifier, downloaded unless torch.hub's cache has them."""
    if backbone not in CLASSIFIERS:
        raise ValueError(f"there are no ImageNet weights for {backbone}; train it with --weights none")
    url = torchvision.models.get_model_weights(CLASSIFIERS[backbone]).IMAGENET1K_V1.url
    return _read(download(url, "download it on another machine and pass --weights FILE, or train with --weights none"))


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Limits how long a connection may deliver no data; by default Python waits forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> State:
    """The tensors in a file, or in the last checkpoint of a run folder, by name."""
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; --weights accepts imagenet, none, or a file of weights")
    return read_tensors(file)


def _backbone_tensors(state: State, backbone: str, source: str) -> State:
    """The tensors of `state` that belong to the backbone, under the backbone's own names.

    Raises ValueError if a tensor is missing or has another shape, or if `state` has tensors of an unknown model.
    """
    with torch.device("meta"):
        wanted = BACKBONES[backbone]().state_dict()
        ignorable = _classifier_names(backbone)
    if any(name.startswith("backbone.") for name in state):  # only the backbone of a detector is used
        state = {name.removeprefix("backbone."): one for name, one in state.items() if name.startswith("backbone.")}
    found = {_own_name(name, backbone): tensor for name, tensor in state.items()}
    if not any(name.startswith("fpn.") for name in found):  # a pyramid's own layers may start from random values
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("fpn.")}
    elif not any(name.startswith("fpn.") for name in wanted):
        found = {name: tensor for name, tensor in found.items() if not name.startswith("fpn.")}
    counter = "num_batches_tracked"  # missing in files with frozen normalisations
    faults = {
        "missing": [name for name in wanted if name not in found and not name.endswith(counter)],
        "unknown": [name for name in found if name not in wanted and name not in ignorable],
        "of another shape": [name for name in wanted if name in found and found[name].shape != wanted[name].shape],
    }
    if any(faults.values()):
        counts = "; ".join(f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names)
        raise ValueError(f"{source} does not hold the weights of {backbone}: {counts}; choose the matching --backbone")
    return {name: found[name] for name in wanted if name in found}


def _head_tensors(state: State, backbone: str) -> State:
    """VGG-16's fully connected layers under the head's names; empty for other backbones."""
    if backbone != "vgg16":
        return {}
    return {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in FC_LAYERS.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state
    }


def _classifier_names(backbone: str) -> set[str]:
    """All tensor names of the classifier that contains the backbone, translated by `_own_name`."""
    if backbone not in CLASSIFIERS:
        return set()
    classifier = torchvision.models.get_model(CLASSIFIERS[backbone], weights=None)
    return {_own_name(name, backbone) for name in classifier.state_dict()}


def _own_name(name: str, backbone: str) -> str:
    """Translates a tensor's name in torchvision's classifier, or in a detector's backbone, to its name here."""
    if name.startswith("fpn."):  # torchvision's published detectors still have the names from before version 0.13
        return re.sub(r"_blocks\.(\d+)\.(weight|bias)$", r"_blocks.\1.0.\2", name)
    inner = name.removeprefix("body.")
    if inner != name and inner[0].isdigit():
        inner = f"features.{inner}"  # torchvision's MobileNet detectors omit the classifier's prefix
    return f"body.{inner}" if backbone.endswith("_fpn") else inner


def _first(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
