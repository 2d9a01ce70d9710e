"""The mode that watches the calls of a network and applies the rule of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from faster_rcnn.torchvision_adapter.extents.extent import Unsupported
from faster_rcnn.torchvision_adapter.extents.table import FUNCTIONS, RULES
from faster_rcnn.torchvision_adapter.extents.tags import Tags, flat


class AsIfAlone(TorchFunctionMode, Tags):
    """While it is entered, what is computed from `track`ed tensors depends on each image alone.

    An operation on them that has no rule raises Unsupported.
    """

    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)
        Tags.__init__(self)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if all(self.tag_of(value) is None for value in flat((args, kwargs))):
            return func(*args, **kwargs)
        operation = FUNCTIONS.get(func)
        if operation is not None:
            self.forget_input(operation.overwritten(args, kwargs))
            return RULES[operation.name](self, operation, *args, **kwargs)
        out = func(*args, **kwargs)
        if any(isinstance(value, Tensor) for value in flat(out)):
            raise Unsupported(
                f"the network calls {resolve_name(func) or func.__name__}, and it is unknown whether that mixes "
                "neighbouring cells of a feature map; if it does, a canvas larger than the image changes the answer"
            )
        return out  # a shape, type or device
