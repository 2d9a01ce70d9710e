"""Any convolutional network on a canvas, as if each image were alone on the tightest one.

What `padding.py` asks of the backbones of this project, layer by layer, is done here to networks that know nothing of
it: every operation that the network calls is watched. Of each feature map it is known how far each image reaches, which
is the size that the map would have if the image were alone; and before an operation looks beyond a cell, what lies
outside is set to what it would find at the border of that map. An operation that nothing is known of is refused: it
might carry the padding into the image.

N  images;  C  channels;  h, w  a map's height and width on the canvas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from faster_rcnn.detector.operators import quotient
from faster_rcnn.detector.padding import outside_offset

Pair = tuple[int, int]


class Unsupported(ValueError):  # noqa: N818  the word for it
    """The network does something that cannot be kept within an image; the message names it."""


@dataclass(eq=False)
class Extent:
    """How far the images reach on maps of one size.

    cells: int64 [N, 2], rows and columns of each image;  canvas: h, w;  stride: pixels of the canvas to a cell;
    rounded_up: whether an image of s pixels reaches over ceil(s / stride) cells, s a multiple of `divisor`;
    image: int64 [N, 2], height and width of the tight canvases, if these are not them.
    """

    cells: Tensor
    canvas: tuple[Any, ...]
    stride: Pair
    rounded_up: bool
    divisor: int
    image: Tensor | None = None
    _inside: Tensor | None = None
    _banishments: dict[Any, Tensor] = field(default_factory=dict)
    _after: dict[Any, Extent] = field(default_factory=dict)

    @property
    def of_image(self) -> Tensor:
        """int64 [N, 2]: height and width of the tight canvas that all of this was derived from."""
        return self.cells if self.image is None else self.image

    @property
    def inside(self) -> Tensor:
        """bool [N, 1, h, w]: which cells are an image's own."""
        if self._inside is None:
            rows, columns = (torch.arange(side, device=self.cells.device) for side in self.canvas)
            here = (rows < self.cells[:, 0:1])[:, :, None] & (columns < self.cells[:, 1:2])[:, None, :]
            self._inside = here[:, None]
        return self._inside

    def banishment(self, channels: int, dtype: torch.dtype) -> Tensor:
        """What blanks features of so many channels when it is added before an activation, see `padding.py`."""
        if (channels, dtype) not in self._banishments:
            self._banishments[channels, dtype] = outside_offset(self.inside, channels, dtype)
        return self._banishments[channels, dtype]

    def after(self, reach: Pair, step: Pair) -> Extent:
        """The extent behind a window that needs `reach` cells beyond its first, less its padding, moved by `step`.

        The map's size follows from that before it. Asking the features for theirs would, in a graph, keep a
        convolution from taking in the normalisation behind it.
        """
        if reach == (0, 0) and step == (1, 1):
            return self
        if (reach, step) not in self._after:
            if reach[0] == reach[1] and step[0] == step[1]:
                cells = _positions(self.cells, reach[0], step[0])
            else:
                sides = zip(self.cells.unbind(1), reach, step, strict=True)
                cells = torch.stack([_positions(*side) for side in sides], dim=1)
            stride = (self.stride[0] * step[0], self.stride[1] * step[1])
            same = self.rounded_up and reach == (0, 0)
            parts = self.whole() and all(
                0 <= r < s and self.divisor % side == 0 for r, s, side in zip(reach, step, stride, strict=True)
            )  # windows that do not overlap part an image without a rest
            canvas = tuple((side - 1 - r) // s + 1 for side, r, s in zip(self.canvas, reach, step, strict=True))
            self._after[reach, step] = Extent(cells, canvas, stride, same or parts, self.divisor, self.of_image)
        return self._after[reach, step]

    def whole(self) -> bool:
        """Whether a cell always stands for `stride` pixels, since what is no multiple of it does not occur."""
        return self.rounded_up and all(self.divisor % side == 0 for side in self.stride)


def _positions(cells: Tensor, reach: int, step: int) -> Tensor:
    """How many positions a window has among `cells`."""
    return quotient((cells - reach - 1).clamp(min=0), step) + 1 if step > 1 else cells - reach


@dataclass(frozen=True)
class Tag:
    """What is known of a tensor: its extent, the axes of rows and columns, whether it is zero outside, or nowhere
    negative, and the activation that it came from with what went into it."""

    extent: Extent
    axes: Pair = (2, 3)
    blank: bool = False
    positive: bool = False
    activation: tuple[Callable[[Tensor], Tensor], Tensor] | None = None


class AsIfAlone(TorchFunctionMode):
    """While it is entered, what is computed from `track`ed tensors depends on each image alone."""

    def __init__(self) -> None:
        super().__init__()
        self._tags: Any = WeakIdKeyDictionary()
        self._blanked: Any = WeakIdKeyDictionary()
        self._extents: list[Extent] = []

    def track(self, maps: Tensor, extent: Extent, blank: bool = False) -> Tensor:
        """From here on `maps` [N, C, h, w] reaches as far as `extent` says."""
        return self.tag(maps, Tag(extent, blank=blank))

    def extent_of(self, maps: Tensor) -> Extent:
        """How far the images reach on `maps`. Raises Unsupported if they do not come from a tracked tensor."""
        tag = self._tags.get(maps)
        if tag is None or tag.axes != (2, 3):
            raise Unsupported("the network's output is no feature map [N, C, h, w] computed from the images")
        return tag.extent

    def tag(self, tensor: Tensor, tag: Tag) -> Tensor:
        self._tags[tensor] = tag
        self._blanked.pop(tensor, None)  # what was computed in place is another map
        if not any(tag.extent is one for one in self._extents):
            self._extents.append(tag.extent)
        return tensor

    def tag_of(self, value: Any) -> Tag | None:
        return self._tags.get(value) if isinstance(value, Tensor) else None

    def blank(self, maps: Tensor) -> Tensor:
        """`maps` with zeros outside the images."""
        tag = self._tags[maps]
        if tag.blank:
            return maps
        if maps not in self._blanked:
            if tag.activation is not None:  # an addition before it becomes part of the convolution before that
                activate, before = tag.activation
                out = activate(before + tag.extent.banishment(before.shape[1], before.dtype))
            else:
                out = maps * tag.extent.inside.to(maps.dtype)
            self._blanked[maps] = self.tag(out, Tag(tag.extent, blank=True, positive=tag.positive))
        return self._blanked[maps]

    def extent_of_size(self, height: Any, width: Any) -> Extent | None:
        """The extent of the maps of h × w that were seen so far."""
        for extent in self._extents:
            if _same_size(extent, height, width):
                return extent
        return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tagged = [tag for value in _flat((args, kwargs)) if (tag := self.tag_of(value)) is not None]
        if not tagged:
            return func(*args, **kwargs)
        name = func.__name__.strip("_").removesuffix("_")
        if kwargs.get("inplace") or (args and re.fullmatch(r"\w*[a-z0-9]_|__i\w+__", func.__name__)):
            self._forget(args[0])
        if name in _RULES:
            return _RULES[name](self, func, *args, **kwargs)
        out = func(*args, **kwargs)
        if not any(isinstance(value, Tensor) for value in _flat(out)):
            return out  # its shape, type, device …
        if name not in _CELL_BY_CELL or not isinstance(out, Tensor):
            raise Unsupported(
                f"the network calls {resolve_name(func) or name}, of which is not known whether it looks beyond a "
                "cell of a feature map; a canvas larger than the image would change the answer"
            )
        return self._each_cell(name, out, tagged, args, kwargs)

    def _forget(self, overwritten: Any) -> None:
        """What an activation was computed from is no longer there: blank what came of it, not what went into it."""
        for tensor, tag in list(self._tags.items()):
            if tag.activation is not None and tag.activation[1] is overwritten:
                self._tags[tensor] = replace(tag, activation=None)

    def _each_cell(self, name: str, out: Tensor, tagged: list[Tag], args: Any, kwargs: Any) -> Tensor:
        """Tags what was computed cell by cell from tensors of one size."""
        first = tagged[0]
        for other in tagged[1:]:
            if not _same_size(other.extent, *first.extent.canvas):
                raise Unsupported(f"the network joins maps of {other.extent.canvas} and {first.extent.canvas} cells")
        tensors = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor) and value.ndim == 4]
        tags = [self.tag_of(value) for value in tensors]
        for tensor, tag in zip(tensors, tags, strict=True):
            if tag is None and not all(statically_known_true(side == 1) for side in tensor.shape[2:]):
                raise Unsupported(f"the network calls {name} on a feature map and something of which nothing is known")
        if name in _QUOTIENT and self.tag_of(args[-1]) is not None:
            raise Unsupported("the network divides by a feature map, which may be zero outside the images")
        every = all(tag is not None for tag in tags)
        numbers = any(isinstance(value, (int, float)) for value in _flat((args, kwargs)))
        blank = (
            (name in _ZERO_TO_ZERO and first.blank)
            or (name in _SUM and every and all(tag is not None and tag.blank for tag in tags) and len(tags) > 1)
            or (name in _PRODUCT and any(tag is not None and tag.blank for tag in tags))
        )
        positive = name in _POSITIVE or (
            (name in _KEEPS_SIGN or (name in _SUM | _PRODUCT and not numbers))
            and every
            and all(tag is not None and tag.positive for tag in tags)
        )
        return self.tag(out, Tag(first.extent, first.axes, blank, positive))


def _same_size(extent: Extent, height: Any, width: Any) -> bool:
    return all(statically_known_true(a == b) for a, b in zip(extent.canvas, (height, width), strict=True))


def _flat(values: Any) -> Iterable[Any]:
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, dict):
        yield from _flat(tuple(values.values()))
    else:
        yield values


# Operations on each cell by itself, by the names of their functions without underscores. None makes what is no number
# of any number that stands outside an image: a product with zero would keep it.
_POSITIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"}
_ZERO_TO_ZERO = {"relu", "relu6", "hardswish", "silu", "gelu", "leaky_relu", "elu", "selu", "mish", "tanh", "prelu"} | {
    "dropout", "to", "float", "half", "contiguous", "clone", "detach", "neg", "abs"
}  # fmt: skip
_KEEPS_SIGN = {"dropout", "to", "float", "half", "contiguous", "clone", "detach"}
_SUM = {"add", "iadd", "radd"}
_PRODUCT = {"mul", "imul", "rmul"}
_OTHERS = {"sub", "isub", "rsub", "div", "truediv", "itruediv", "batch_norm", "hardtanh", "clamp", "softsign"}
_QUOTIENT = {"div", "truediv", "itruediv"}
_CELL_BY_CELL = _POSITIVE | _ZERO_TO_ZERO | _SUM | _PRODUCT | _OTHERS


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]
    return int(first), int(second)


def _maps(alone: AsIfAlone, maps: Tensor, what: str) -> Tag:
    tag = alone.tag_of(maps)
    if tag is None or tag.axes != (2, 3) or maps.ndim != 4:
        raise Unsupported(f"the network calls {what} on something that is no feature map [N, C, h, w]")
    return tag


def _window(tag: Tag, kernel: Pair, padding: Pair, dilation: Pair, step: Pair) -> Extent:
    reach = tuple(d * (k - 1) - 2 * p for k, p, d in zip(kernel, padding, dilation, strict=True))
    return tag.extent.after((reach[0], reach[1]), step)


def _convolution(
    alone: AsIfAlone,
    func: Callable[..., Tensor],
    /,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    tag = _maps(alone, input, "a convolution")
    kernel, steps, dilations = _pair(tuple(weight.shape[2:])), _pair(stride), _pair(dilation)
    if padding == "same":
        if any(d * (k - 1) % 2 for k, d in zip(kernel, dilations, strict=True)):
            raise Unsupported("the network pads a convolution of even size on one side only")
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True))
    paddings = (0, 0) if padding == "valid" else _pair(padding)
    if kernel != (1, 1) or paddings != (0, 0):
        input = alone.blank(input)
    out = func(input, weight, bias, steps, paddings, dilations, groups)
    return alone.tag(out, Tag(_window(tag, kernel, paddings, dilations, steps)))


def _max_pool(
    alone: AsIfAlone,
    func: Callable[..., Tensor],
    /,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    tag = _maps(alone, input, "max pooling")
    kernel, steps = _pair(kernel_size), _pair(stride or kernel_size)
    paddings, dilations = _pair(padding), _pair(dilation)
    if ceil_mode or return_indices:
        raise Unsupported("the network calls max pooling with ceil_mode or return_indices")
    if kernel == (1, 1):
        out = F.max_pool2d(input, kernel, steps, paddings)
        return alone.tag(out, Tag(_window(tag, kernel, paddings, dilations, steps), (2, 3), tag.blank, tag.positive))
    if tag.positive:  # every window holds a cell of the image, against which a zero does not win
        out = F.max_pool2d(alone.blank(input), kernel, steps, paddings, dilations)
        return alone.tag(out, Tag(_window(tag, kernel, paddings, dilations, steps), positive=True))
    lowest = torch.full_like(input[:1, :1, :1, :1], torch.finfo(input.dtype).min)
    out = F.max_pool2d(torch.where(tag.extent.inside, input, lowest), kernel, steps, paddings, dilations)
    out = alone.tag(out, Tag(_window(tag, kernel, paddings, dilations, steps)))
    return alone.blank(out)  # at once: the lowest number must not be multiplied


def _activation(alone: AsIfAlone, func: Callable[..., Tensor], /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Activations that make zero of what is very low."""
    tag = alone.tag_of(input)
    assert tag is not None
    name = func.__name__.strip("_")
    if name == "gelu" and kwargs.get("approximate", "none") != "none":
        before = None
    else:
        before = input.clone() if kwargs.get("inplace") or args or func.__name__.endswith("_") else input
    out = func(input, *args, **kwargs)
    known = None if before is None or tag.axes != (2, 3) or tag.blank else (_VANISHING[name], before)
    return alone.tag(out, Tag(tag.extent, tag.axes, tag.blank and name in _ZERO_TO_ZERO, name in _POSITIVE, known))


def _average_pool(
    alone: AsIfAlone,
    func: Callable[..., Tensor],
    /,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    tag = _maps(alone, input, "average pooling")
    kernel, steps, paddings = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    if ceil_mode:
        raise Unsupported("the network calls average pooling with ceil_mode")
    out = F.avg_pool2d(alone.blank(input), kernel, steps, paddings, divisor_override=divisor_override)
    if not count_include_pad and divisor_override is None:
        share = F.avg_pool2d(tag.extent.inside.to(input.dtype), kernel, steps, paddings)
        out = out / share.clamp(min=1 / math.prod(kernel))
    return alone.tag(out, Tag(_window(tag, kernel, paddings, (1, 1), steps), positive=tag.positive))


def _mean_of_image(maps: Tensor, extent: Extent) -> Tensor:
    """The mean over each image's own cells: [N, C, 1, 1].

    Summed in float64, because in float32 the order of the summands, which follows from the canvas, shows.
    """
    inside = extent.inside
    total = (maps * inside.to(maps.dtype)).sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
    count = (extent.cells[:, 0] * extent.cells[:, 1]).clamp(min=1)[:, None, None, None]
    return (total / count).to(maps.dtype)


def _adaptive_average_pool(alone: AsIfAlone, func: Callable[..., Tensor], /, input: Tensor, output_size: Any) -> Tensor:
    tag = _maps(alone, input, "adaptive average pooling")
    if _pair(output_size) != (1, 1):
        raise Unsupported(f"the network pools adaptively to {output_size}; only to one cell can be told for an image")
    return _mean_of_image(input, tag.extent)


def _mean(
    alone: AsIfAlone, func: Callable[..., Tensor], /, input: Tensor, dim: Any = None, keepdim: bool = False, **more: Any
) -> Tensor:
    tag = _maps(alone, input, "a mean")
    axes = {axis % 4 for axis in ((dim,) if isinstance(dim, int) else dim or (0, 1, 2, 3))}
    if axes == {1}:
        return alone.tag(func(input, dim, keepdim=True), Tag(tag.extent))
    if axes != {2, 3}:
        raise Unsupported(f"the network takes a mean over the axes {sorted(axes)} of a feature map")
    mean = _mean_of_image(input, tag.extent)
    return mean if keepdim else mean.flatten(1)


def _interpolate(
    alone: AsIfAlone,
    func: Callable[..., Tensor],
    /,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    **more: Any,
) -> Tensor:
    tag = _maps(alone, input, "interpolation")
    out = func(input, size, scale_factor, mode, **more)
    extent = alone.extent_of_size(out.shape[2], out.shape[3])
    if extent is None and scale_factor is not None and all(float(one).is_integer() for one in _flat((scale_factor,))):
        factor = _pair(int(scale_factor) if isinstance(scale_factor, float) else scale_factor)
        stride = (tag.extent.stride[0] // factor[0], tag.extent.stride[1] // factor[1])
        cells = tag.extent.cells * tag.extent.cells.new_tensor(factor)
        extent = Extent(
            cells, (out.shape[2], out.shape[3]), stride, tag.extent.whole(), tag.extent.divisor, tag.extent.of_image
        )
    if extent is None or mode != "nearest" or not _doubles(tag.extent, extent):
        raise Unsupported(
            f"the network resizes a feature map by {mode!r} interpolation to a size that depends on the canvas; "
            "only the nearest cell of a map of whole multiples can be told for an image"
        )
    return alone.tag(out, Tag(extent, (2, 3), tag.blank and tag.extent.whole(), tag.positive))


def _doubles(coarse: Extent, fine: Extent) -> bool:
    """Whether the nearest cell follows from the strides alone: they are equal, double, or whole multiples."""
    if coarse is fine:
        return True
    if not (coarse.rounded_up and fine.rounded_up):
        return False
    ratios = {c / f for c, f in zip(coarse.stride, fine.stride, strict=True)}
    return ratios <= {1.0, 2.0} or (coarse.whole() and all(ratio.is_integer() for ratio in ratios))


def _cat(alone: AsIfAlone, func: Callable[..., Tensor], /, tensors: Any, dim: int = 0, **more: Any) -> Tensor:
    tags = [_maps(alone, one, "a concatenation") for one in tensors]
    dim = more.pop("axis", dim)
    if dim % 4 != 1 or not all(_same_size(tag.extent, *tags[0].extent.canvas) for tag in tags):
        raise Unsupported("the network joins feature maps other than by their channels")
    blank, positive = all(tag.blank for tag in tags), all(tag.positive for tag in tags)
    return alone.tag(func(tensors, dim), Tag(tags[0].extent, (2, 3), blank, positive))


def _parts(alone: AsIfAlone, func: Callable[..., Any], /, input: Tensor, number: Any, dim: int = 0) -> Any:
    """Chunks or a split of the channels."""
    tag = _maps(alone, input, func.__name__)
    if dim % 4 != 1:
        raise Unsupported("the network splits feature maps other than by their channels")
    return tuple(alone.tag(one, Tag(tag.extent, (2, 3), tag.blank, tag.positive)) for one in func(input, number, dim))


def _pad(
    alone: AsIfAlone, func: Callable[..., Tensor], /, input: Tensor, pad: Any, mode: str = "constant",
    value: Any = None,
) -> Tensor:  # fmt: skip
    tag = _maps(alone, input, "padding")
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    if mode != "constant" or value or len(pad) > 4 or min(pad) < 0:
        raise Unsupported("the network pads a feature map other than with zeros at its sides")
    out = F.pad(alone.blank(input), pad)
    extent = tag.extent.after((-top - bottom, -left - right), (1, 1))
    return alone.tag(out, Tag(extent, blank=True, positive=tag.positive))


def _group_norm(
    alone: AsIfAlone,
    func: Callable[..., Tensor],
    /,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group normalisation whose statistics are of the image and not of its canvas."""
    tag = _maps(alone, input, "group normalisation")
    inside = tag.extent.inside.to(torch.float32)[:, None]  # [N, 1, 1, h, w]
    grouped = input.unflatten(1, (num_groups, input.shape[1] // num_groups)).to(torch.float32)
    count = inside.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1) * grouped.shape[2]
    mean = (grouped * inside).sum(dim=(2, 3, 4), keepdim=True) / count
    variance = ((grouped - mean).square() * inside).sum(dim=(2, 3, 4), keepdim=True) / count
    out = ((grouped - mean) * torch.rsqrt(variance + eps)).flatten(1, 2).to(input.dtype)
    if weight is not None:
        out = out * weight[:, None, None]
    if bias is not None:
        out = out + bias[:, None, None]
    return alone.tag(out, Tag(tag.extent))


def _permute(alone: AsIfAlone, func: Callable[..., Tensor], /, input: Tensor, *dims: Any) -> Tensor:
    tag = alone.tag_of(input)
    assert tag is not None
    order = [axis % input.ndim for axis in _flat(dims)]
    return alone.tag(func(input, *dims), Tag(tag.extent, (order.index(tag.axes[0]), order.index(tag.axes[1]))))


def _of_channels(alone: AsIfAlone, func: Callable[..., Tensor], /, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Linear layers and layer normalisation of [N, h, w, C]: they see one cell's channels."""
    tag = alone.tag_of(input)
    if tag is None or tag.axes != (1, 2) or input.ndim != 4:
        raise Unsupported("the network calls a linear layer or layer normalisation across the cells of a feature map")
    if func.__name__ == "layer_norm" and len(kwargs.get("normalized_shape", args[0] if args else ())) != 1:
        raise Unsupported("the network normalises across the cells of a feature map")
    return alone.tag(func(input, *args, **kwargs), Tag(tag.extent, tag.axes))


_VANISHING: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
}
_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_VANISHING, _activation),
    "conv2d": _convolution,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_average_pool,
    "mean": _mean,
    "interpolate": _interpolate,
    "cat": _cat,
    "concat": _cat,
    "chunk": _parts,
    "split": _parts,
    "pad": _pad,
    "group_norm": _group_norm,
    "permute": _permute,
    "linear": _of_channels,
    "layer_norm": _of_channels,
}
