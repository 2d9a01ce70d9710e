"""Whether the processes of a run have started alike: a run in which they differ would be wrong, or wait for ever."""

import hashlib
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.image_record import changes, image_record
from faster_rcnn.training.processes import place_of
from faster_rcnn.training.waiting import exchanged

NOT_COMPARED = ("device", "out")  # only the first process uses its run folder
PACKAGES = ("faster_rcnn", "service")
SHOWN = 3  # differences in a message


def check_same_start(user_options: Mapping[str, Any]) -> None:
    """Compares options, versions and code of all processes, before any of them reads the data.

    Raises ValueError in every process, naming the first one that differs from process 0, and the differences.
    """
    options = {
        f"--{name.replace('_', '-')}": _typed(value)
        for name, value in user_options.items()
        if name not in NOT_COMPARED and value not in (None, False)
    }
    _check_same(
        options | versions(),
        "start all processes with the same options, code and packages",
    )


def check_same_data(splits: tuple[Dataset, Dataset], digests: tuple[str | None, str | None]) -> None:
    """Compares the annotations and images that the processes have read.

    splits: for training and validation;  digests: of their annotations.
    Raises ValueError in every process, naming the first one that differs from process 0, and the first images.
    """
    record = image_record(splits)
    images = hashlib.sha256(repr(sorted(record.items())).encode()).hexdigest()
    of_all = exchanged((tuple(digests), images))
    other = next((number for number, one in enumerate(of_all) if one != of_all[0]), None)
    if other is None:
        return
    records = exchanged(record)  # they are large, and not needed where all agree
    found = changes(records[0], records[other])
    if not found:
        unlike = zip(("train", "val"), of_all[0][0], of_all[other][0], strict=True)
        found = f"the annotations of {' and '.join(name for name, one, two in unlike if one != two)} differ"
    raise ValueError(
        f"process {other} ({place_of(other)}) has other data than process 0 ({place_of(0)}): {found}; "
        "give all machines the same files"
    )


def versions() -> dict[str, str]:
    """The versions on which the result of a run depends, and a digest of this project's code."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "NumPy": np.__version__,
        "Pillow": PIL.__version__,
        "the code": _digest_of_code(),
    }


def _check_same(own: dict[str, str], remedy: str) -> None:
    of_all = exchanged(own)
    first = of_all[0]
    for number, one in enumerate(of_all):
        if one == first:
            continue
        names = [name for name in {**first, **one} if one.get(name) != first.get(name)]
        shown = ", ".join(
            f"{name} {one.get(name, 'not given')} instead of {first.get(name, 'not given')}" for name in names[:SHOWN]
        )
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ValueError(
            f"process {number} ({place_of(number)}) has started otherwise than process 0 ({place_of(0)}): "
            f"{shown}{more}; {remedy}"
        )


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations if spec else None) or ():
            for file in sorted(Path(root).rglob("*.py")):
                digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
