"""Reads a file of tensors without running any code that the file names.

A file of `torch.save` is a pickle, and a pickle may name any function to be called when it is loaded. Here only torch's
own allow-list and the stand-ins of this file are called. A stand-in keeps the plain value of a thing that training
programs often save beside the tensors: a number or an array of NumPy, a path, a date, a namespace of options.
Files in the safetensors format cannot name functions.
"""

import argparse
import datetime
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 3  # names in a message
# Where a class comes from tells which program wrote the file.
FRAMEWORKS = {
    "ultralytics": "Ultralytics (YOLO)",
    "models": "YOLOv5 or YOLOv7",
    "mmengine": "MMDetection",
    "mmcv": "MMDetection",
    "mmdet": "MMDetection",
    "detectron2": "Detectron2",
    "transformers": "Hugging Face Transformers",
    "keras": "Keras",
}
# The first bytes of files that are mistaken for checkpoints.
OTHER_FILES = {
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"\x89HDF": "is an HDF5 file, as Keras writes; save the model's state_dict() with torch.save",
    b"<": "is a page of HTML or XML, so the download failed; download it again",
    b"{": "is JSON, not tensors; name the file that holds the weights",
}


def read_content(file: Path) -> Any:
    """The content of a file that `torch.save` or safetensors wrote.

    Namespaces and containers become dicts, arrays of NumPy become tensors, its numbers become Python's, paths become
    text. Raises FileNotFoundError, or ValueError if the file holds other things; the message gives the remedy.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name the file of weights in it")
    with file.open("rb") as opened:
        start = opened.read(32)
    if not start:
        raise ValueError(f"{file} is empty; copy or download it again")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size:
        return _read_safetensors(file)
    for signature, fault in OTHER_FILES.items():
        if start.startswith(signature):
            raise ValueError(f"{file} {fault}")
    return _plain(_read_pickle(file), {})


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(
            f"{file} is in the safetensors format, which needs a package; install it with pip install safetensors"
        ) from error
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a dict
            notes = {name: text for name, text in (opened.metadata() or {}).items() if name != "format"}
    except SafetensorError as error:
        raise ValueError(f"{file} is a damaged safetensors file; copy or download it again") from error
    return tensors | ({"metadata": notes} if notes else {})


def _read_pickle(file: Path) -> object:
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive also causes an error
            loaded: object = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types of error for a file that torch.save did not write
        raise ValueError(f"{file} {_fault(file, str(error))}") from error
    return loaded


def _fault(file: Path, complaint: str) -> str:
    """What is wrong with a file that torch.load refuses."""
    # torch.load stops at the first name, which is often that of the outermost class
    first = re.findall(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)", complaint)
    if unsafe := first + [name for name in _unsafe_names(file) if name.removeprefix("builtins.") not in first]:
        shown = ", ".join(unsafe[:SHOWN]) + (", …" if len(unsafe) > SHOWN else "")
        makers = [FRAMEWORKS[name.split(".")[0]] for name in unsafe if name.split(".")[0] in FRAMEWORKS]
        origin = f"; it was written by {makers[0]}, and this command reads torchvision's Faster R-CNN" if makers else ""
        return (
            f"contains a pickled {shown}, which could run code when it is loaded{origin}; "
            "save only model.state_dict() with the program that wrote the file"
        )
    if "TorchScript" in complaint:
        return "is a TorchScript archive; save only model.state_dict() with the program that wrote the file"
    return "is broken or was not written by torch.save"


def _unsafe_names(file: Path) -> list[str]:
    """The functions and classes that the pickle names, beyond those that are allowed; empty if it cannot be listed."""
    if not zipfile.is_zipfile(file):
        return []
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:  # a broken file, or a TorchScript archive
        return []
    return sorted(set(named) - _STAND_INS.keys())


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """`value` with dicts and lists for all containers. A container that holds itself is kept once."""
    if isinstance(value, _Array):
        return value.tensor()
    if isinstance(value, (argparse.Namespace, SimpleNamespace)):
        value = vars(value)
    if not isinstance(value, (Mapping, list, tuple)) or isinstance(value, torch.Size):
        return value
    if id(value) not in seen:
        if isinstance(value, Mapping):
            found: dict[Any, Any] = {}
            seen[id(value)] = found
            attributes = {name: one for name, one in _attributes(value).items() if not str(name).startswith("_")}
            found |= {name: _plain(one, seen) for name, one in (attributes | dict(value)).items()}
        else:
            listed: list[Any] = []
            seen[id(value)] = listed
            listed += [_plain(one, seen) for one in value]
    return seen[id(value)]


def _attributes(value: Any) -> dict[str, Any]:
    return vars(value) if isinstance(value, OrderedDict) else {}


class _Settings:
    """Stands in for the dicts of other packages. torch.load fills only dicts that it knows, such as OrderedDict."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Dtype:
    """Stands in for numpy.dtype. Only numbers and booleans are kept."""

    def __init__(self, code: Any = "", *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>" else "="

    def array(self, data: Any) -> np.ndarray | None:
        if not re.fullmatch(r"[biufc]\d{1,2}", self.code) or not isinstance(data, (bytes, bytearray)):
            return None
        return np.frombuffer(bytes(data), np.dtype(self.order + self.code)).astype(self.code)


class _Array:
    """Stands in for numpy.ndarray."""

    def __init__(self, *_: object) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, data = state
        values = kind.array(data)
        self.values = None if values is None else values.reshape(shape, order="F" if by_column else "C")

    def tensor(self) -> Tensor | None:
        """None for an array of other things than numbers."""
        try:
            return None if self.values is None else torch.from_numpy(self.values.copy())
        except TypeError:
            return None


def _array(*_: object) -> _Array:
    return _Array()


def _scalar(kind: Any, data: Any = None) -> Any:
    values = kind.array(data) if isinstance(kind, _Dtype) else None
    return values[0].item() if values is not None and len(values) == 1 else None


class _Path:
    """Stands in for a path of any operating system."""

    def __new__(cls, *parts: Any) -> str:  # type: ignore[misc]
        return str(PurePosixPath(*map(str, parts)))


class _Text:
    """Stands in for subclasses of str."""

    def __new__(cls, *parts: Any) -> str:  # type: ignore[misc]
        return " ".join(map(str, parts))


class _Moment:
    """Stands in for dates and times, which tell nothing that is needed here."""

    def __new__(cls, *_: object) -> None:  # type: ignore[misc]
        return None


_STAND_INS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": SimpleNamespace,
    "collections.defaultdict": _Settings,
    **{f"builtins.{kind.__name__}": kind for kind in (bool, dict, float, int, list, str, tuple)},
    **{
        f"numpy.{core}.multiarray.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (("scalar", _scalar), ("_reconstruct", _array))
    },
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{
        f"{module}.{kind}": _Path
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    },
    **{f"datetime.{kind.__name__}": _Moment for kind in (datetime.date, datetime.datetime, datetime.timedelta)},
    "torch.torch_version.TorchVersion": _Text,
    **dict.fromkeys(
        (
            "addict.addict.Dict",
            "easydict.EasyDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "ml_collections.config_dict.config_dict.ConfigDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "yacs.config.CfgNode",
        ),
        _Settings,
    ),
}
