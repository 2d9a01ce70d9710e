"""The functions of PyTorch that call an operation, and which of them write into their input.

PyTorch offers most operations several times: `F.relu`, `torch.relu`, `Tensor.relu`, and in place `F.relu_`,
`torch.relu_`, `Tensor.relu_` and `F.relu(…, inplace=True)`. A function is recognised as the object that it is, not by
its name, so one of another library that happens to have the same name is not mistaken for it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HOMES = (torch, F, Tensor)
# The methods that Python's operators call. `1 / maps` is left out: it may divide by the zeros outside an image.
SYMBOLS: Mapping[str, tuple[str, ...]] = {
    "add": ("__add__", "__radd__", "__iadd__"),
    "sub": ("__sub__", "__rsub__", "__isub__"),
    "mul": ("__mul__", "__rmul__", "__imul__"),
    "div": ("__div__", "__truediv__", "__idiv__", "__itruediv__"),
}


@dataclass(frozen=True)
class Operation:
    """One of the functions that call an operation.

    name: of the operation;  in_place: whether the function always writes into its first argument;
    switch: the position of its parameter `inplace`, if it has one.
    """

    name: str
    function: Callable[..., Any]
    in_place: bool
    switch: int | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def overwritten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The tensor that a call with these arguments writes into, or None."""
        switched = self.switch is not None and (
            args[self.switch] if len(args) > self.switch else kwargs.get("inplace", False)
        )
        if self.in_place or switched:
            return args[0] if args else kwargs["input"]
        return kwargs.get("out")


def functions_of(names: Iterable[str]) -> dict[Callable[..., Any], Operation]:
    """Every function of torch, torch.nn.functional and Tensor that calls one of the operations `names`."""
    return {
        function: Operation(name, function, in_place, _switch(function))
        for name in names
        for function, in_place in _spelled(name)
    }


def _spelled(name: str) -> Iterator[tuple[Callable[..., Any], bool]]:
    spellings = {name: False, f"{name}_": True}
    spellings |= {symbol: symbol.startswith("__i") for symbol in SYMBOLS.get(name, ())}
    for spelling, in_place in spellings.items():
        for home in HOMES:
            function = getattr(home, spelling, None)
            if callable(function):  # torch.float is a type of numbers
                yield function, in_place


def _switch(function: Callable[..., Any]) -> int | None:
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:  # functions written in C have no signature, and none of them has an `inplace`
        return None
    return parameters.index("inplace") if "inplace" in parameters else None
