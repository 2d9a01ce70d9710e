"""Finds the tensors of torchvision's Faster R-CNN in whatever a training program saved around them.

Every wrapper lengthens the names: a dict by its key, torch.compile by `_orig_mod`, DataParallel and AveragedModel by
`module`, Lightning by the attribute that holds the model. A file is therefore read as one flat list of names, joined by
dots. Wherever a name ends with that of the predictor, a model begins, and what precedes it is the prefix.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faster_rcnn.detector.tensor_files import read_content
from faster_rcnn.torchvision_adapter.architectures import recognise

State = dict[str, Tensor]

PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
PARTS = ("backbone.", "rpn.", "roi_heads.")  # of torchvision's Faster R-CNN
# Parts of a name that wrappers insert anywhere.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged?|shadow|polyak|teacher)(_|$)", re.IGNORECASE)
TRAINING = re.compile(
    r"optim|scheduler|moment|grad|exp_avg", re.IGNORECASE
)  # tensors under a model's names, but no model
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Found:
    """A model in a file.

    place: its prefix as it stands in the file, empty if there is none;  names: those of its tensors in the file, by
    their names in torchvision;  averaged: whether the file says that these are averaged weights (EMA, SWA).
    """

    place: str
    names: dict[str, str]
    averaged: bool

    @property
    def shown(self) -> str:
        return self.place or "the file itself"


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors, and where they were found.

    state: floating tensors in float32;  content: all of the file, as `read_content` returns it;  place: the model's
    prefix in the file;  report: lines on what was used, converted and ignored.
    """

    state: State
    content: Any
    place: str
    report: tuple[str, ...]


def read_model(file: Path, use: str | None = None) -> Checkpoint:
    """The tensors of the model in a file.

    use: "model", "ema" or a prefix, if the file holds several models; by default those that are not averaged.
    Raises FileNotFoundError, or ValueError if the file does not hold a Faster R-CNN of torchvision, holds several that
    `use` does not tell apart, or if its tensors are not finite floats.
    """
    content = read_content(file)
    tensors: State = dict(_flat(content))
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name; save a model's state_dict()")
    models = _models(tensors)
    if not models:
        _refuse_others(tensors, file)
        raise ValueError(
            f"{file} has no {PREDICTOR}, so it is not a torchvision Faster R-CNN (its {len(tensors)} tensors are "
            f"{_first(list(tensors))}); build the model in Python and pass it to faster_rcnn.graph.publish"
        )
    chosen = _choose(models, use, tensors, file)
    _refuse_others([name for name in chosen.names if name.startswith((*PARTS, "proposal_generator."))], file)
    own = {name: raw for name, raw in chosen.names.items() if name.startswith(PARTS)}
    state, converted = _in_float32({name: tensors[raw] for name, raw in own.items()}, file)
    report = [f"{file.name}: used {len(own)} tensors" + (f" under {chosen.place}" if chosen.place else "")]
    if len(models) > 1:
        others = ", ".join(one.shown for one in models if one is not chosen)
        kind = "the averaged weights (EMA)" if chosen.averaged else "the weights that are not averaged"
        report.append(f"used {chosen.shown}, {kind}, and not {others}; --use ema|model|PREFIX chooses")
    elif chosen.averaged:
        report.append(f"these are averaged weights (EMA); {file.name} holds no others")
    report += converted
    if ignored := _ignored(content, set(tensors) - set(own.values())):
        report.append(f"ignored: {ignored}")
    return Checkpoint(state, content, chosen.place, tuple(report))


def _refuse_others(names: Iterable[str], file: Path) -> None:
    if other := recognise(names):
        raise ValueError(
            f"{file} has the tensors of {other}; this command reads the Faster R-CNN of torchvision.models.detection"
        )


def _flat(value: Any, name: str = "", around: frozenset[int] = frozenset()) -> Iterator[tuple[str, Tensor]]:
    """All tensors under their names, joined by dots. around: the containers that hold `value`, to end circles."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list)) and id(value) not in around:
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, one in inner:
            yield from _flat(one, f"{name}.{key}" if name else str(key), around | {id(value)})


def _models(tensors: State) -> list[Found]:
    bare = {raw: ".".join(part for part in raw.split(".") if part not in WRAPPERS) for raw in tensors}
    found = []
    for raw, name in bare.items():
        if name != PREDICTOR and not name.endswith(f".{PREDICTOR}"):
            continue
        start = name.removesuffix(PREDICTOR)
        place = raw[: raw.index("roi_heads")].rstrip(".")
        names = {
            one.removeprefix(start): other
            # two models may differ in their wrappers alone; the shortest name is then the one without
            for other, one in sorted(bare.items(), key=lambda pair: -len(pair[0]))
            if one.startswith(start) and other.startswith(place)
        }
        if any(TRAINING.search(part) for part in place.split(".")):
            continue
        averaged = any(AVERAGED.search(part) for part in place.split(".")) or f"{start}n_averaged" in bare.values()
        found.append(Found(place, names, averaged))
    return found


def _choose(models: list[Found], use: str | None, tensors: State, file: Path) -> Found:
    fitting = models
    if use in ("ema", "model"):
        fitting = [one for one in models if one.averaged == (use == "ema")]
    elif use is not None:
        fitting = [one for one in models if one.place == use.rstrip(".")]
    elif any(not one.averaged for one in models):
        fitting = [one for one in models if not one.averaged]
    shown = ", ".join(f"{one.shown} ({'ema' if one.averaged else 'model'})" for one in models)
    if not fitting:
        raise ValueError(f"{file} has no model for --use {use}; it holds {shown}")
    first = fitting[0]
    if all(_same(first, one, tensors) for one in fitting[1:]):
        return first
    raise ValueError(f"{file} holds several models: {shown}; choose one with --use PREFIX")


def _same(first: Found, second: Found, tensors: State) -> bool:
    return first.names.keys() == second.names.keys() and all(
        torch.equal(tensors[raw], tensors[second.names[name]]) for name, raw in first.names.items()
    )


def _in_float32(state: State, file: Path) -> tuple[State, list[str]]:
    """The tensors with all floating ones in float32, and a line on those that were not."""
    strange = [
        name for name, one in state.items() if one.is_quantized or one.layout != torch.strided or one.is_complex()
    ]
    if strange:
        raise ValueError(
            f"{file}: {_first(strange)} is quantised, sparse or complex; save the float weights of the model"
        )
    floating = {name: one for name, one in state.items() if one.is_floating_point()}
    if packed := [name for name, one in state.items() if name not in floating and name.endswith((".weight", ".bias"))]:
        raise ValueError(
            f"{file}: {_first(packed)} has whole numbers ({state[packed[0]].dtype}); save the model's float weights"
        )
    if broken := [name for name, one in floating.items() if not torch.isfinite(one).all()]:
        raise ValueError(
            f"{file} has NaN or infinity in {len(broken)} of its tensors ({_first(broken)}), so its training diverged; "
            "choose an earlier checkpoint"
        )
    kinds = Counter(str(one.dtype).removeprefix("torch.") for one in floating.values() if one.dtype != torch.float32)
    lines = [f"converted {count} tensors from {kind} to float32" for kind, count in kinds.items()]
    return state | {name: one.float() for name, one in floating.items()}, lines


def _ignored(content: Any, unused: set[str]) -> str:
    """What the file holds besides the model: its entries, with the number of tensors in each."""
    groups: dict[str, list[str]] = {}
    for name in sorted(unused):
        groups.setdefault(name.split(".")[0], []).append(name)
    words = [
        ", ".join(names) if len(names) <= SHOWN else f"{entry} ({len(names)} tensors)"
        for entry, names in groups.items()
    ]
    if isinstance(content, Mapping):
        words += [str(key) for key, one in content.items() if str(key) not in groups and not any(_flat(one))]
    return ", ".join(words)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
