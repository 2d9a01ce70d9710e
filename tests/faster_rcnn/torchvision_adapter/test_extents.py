"""Every operation with a rule computes each image on a padded canvas as if it were alone.

Each case runs twice. *Alone*: plain PyTorch on one image at a time, without padding. *Together*: all images in one
batch on a canvas, with noise around them and the calls watched. A convolution and a maximum follow in both. They
look beyond an image's last cell and so show whether the padding was blanked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from faster_rcnn.torchvision_adapter.extents import AsIfAlone, Extent, Unsupported
from faster_rcnn.torchvision_adapter.extents.operations import HOMES, Operation, functions_of
from faster_rcnn.torchvision_adapter.extents.table import FUNCTIONS, RULES

CHANNELS = 4
Call = Callable[[Callable[..., Any], Tensor], Any]  # of a function, on maps [N, CHANNELS, h, w]


@dataclass(frozen=True)
class Canvas:
    """sizes: height, width of each image;  divisor: which their sides are multiples of;  canvas: height, width."""

    sizes: tuple[tuple[int, int], ...]
    divisor: int
    canvas: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.canvas[0]}x{self.canvas[1]}"


MULTIPLES_OF_4 = ((8, 12), (4, 4), (12, 8))
CANVASES = [
    Canvas(MULTIPLES_OF_4, 4, (12, 12)),  # the smallest that holds all three
    Canvas(MULTIPLES_OF_4, 4, (16, 32)),
    Canvas(((7, 11), (5, 6), (3, 9)), 1, (14, 13)),
]


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


KERNEL, BIAS = weights(CHANNELS, CHANNELS, 3, 3), weights(CHANNELS)


def with_another(function: Callable[..., Any], maps: Tensor) -> Any:
    return function(maps, maps * 0.5)


def on_channels_last(*arguments: Any) -> Call:
    return lambda function, maps: function(maps.permute(0, 2, 3, 1), *arguments).permute(0, 3, 1, 2)


def given(*arguments: Any, **options: Any) -> Call:
    return lambda function, maps: function(maps, *arguments, **options)


# How each operation of the rule table is called, in all its forms.
CALLS: dict[str, Call] = {
    **dict.fromkeys(("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "hardsigmoid", "softplus"), given()),
    **dict.fromkeys(("leaky_relu", "elu", "selu", "mish", "tanh", "neg", "abs", "softsign"), given()),
    **dict.fromkeys(("float", "half", "contiguous", "clone", "detach"), given()),
    "prelu": given(torch.tensor([0.25])),
    "dropout": given(0.5, False),
    "to": given(torch.float64),
    "add": with_another,
    "sub": with_another,
    "mul": with_another,
    "div": given(3.0),
    "clamp": given(0.25, 1.5),
    "hardtanh": given(-0.5, 0.5),
    "batch_norm": given(weights(CHANNELS), weights(CHANNELS).abs() + 0.5),
    "conv2d": given(KERNEL, BIAS, 2, 1),
    "max_pool2d": given(3, 2, 1),
    "avg_pool2d": given(3, 2, 1),
    "pad": given((1, 0, 2, 1)),
    "adaptive_avg_pool2d": given(1),
    "mean": given((2, 3), True),
    "group_norm": given(2, weights(CHANNELS), weights(CHANNELS)),
    "interpolate": lambda function, maps: function(F.conv2d(maps, KERNEL, None, 2, 1), size=maps.shape[2:]),
    "cat": lambda function, maps: function((maps, maps * 0.5), 1),
    "concat": lambda function, maps: function((maps, maps * 0.5), 1),
    "chunk": lambda function, maps: function(maps, 2, 1)[1],
    "split": lambda function, maps: function(maps, 3, 1)[0],
    "permute": lambda function, maps: function(function(maps, (0, 2, 3, 1)), (0, 3, 1, 2)),
    "linear": on_channels_last(weights(CHANNELS, CHANNELS)),
    "layer_norm": on_channels_last((CHANNELS,)),
}
# torch.batch_norm takes its arguments in another order than torch.nn.functional.batch_norm.
OF_TORCH: dict[Callable[..., Any], Call] = {
    torch.batch_norm: given(None, None, weights(CHANNELS), weights(CHANNELS).abs() + 0.5, False, 0.1, 1e-5, False)
}
# The branches of the rules that the calls above do not take.
VARIANTS: dict[str, Callable[[Tensor], Any]] = {
    "convolution without padding": lambda maps: F.conv2d(maps, KERNEL[:, :, :2, :2]),
    "convolution 'valid'": lambda maps: F.conv2d(maps, KERNEL[:, :, :3, :1], padding="valid"),
    "convolution 'same'": lambda maps: F.conv2d(maps, KERNEL, BIAS, padding="same", dilation=2),
    "convolution, sides differ": lambda maps: F.conv2d(maps, KERNEL[:, :, :1], stride=(2, 1), padding=(0, 1)),
    "convolution, dilated, in groups": lambda maps: F.conv2d(maps, KERNEL[:, :2], padding=2, dilation=2, groups=2),
    "convolution of one cell": lambda maps: F.conv2d(maps, KERNEL[:, :, :1, :1], BIAS),
    "convolution of tiles": lambda maps: F.conv2d(maps, KERNEL[:, :, :2, :2], stride=2),
    "max pooling of one cell": lambda maps: F.max_pool2d(maps, 1, 2),
    "max pooling, dilated": lambda maps: F.max_pool2d(maps, 2, 1, 1, 2),
    "max pooling, default stride": lambda maps: F.max_pool2d(maps, 2),
    "max pooling of negative maps": lambda maps: F.max_pool2d(-maps.abs() - 1, 3, 1, 1),
    "average pooling without the padding": lambda maps: F.avg_pool2d(maps, 3, 2, 1, count_include_pad=False),
    "average pooling with a divisor": lambda maps: F.avg_pool2d(maps, 2, divisor_override=3),
    "mean of an image": lambda maps: maps.mean((-2, -1)),
    "mean of the channels": lambda maps: maps.mean(1, True),
    "group normalisation without weights": lambda maps: F.group_norm(maps, 4),
    "gelu by tanh": lambda maps: F.gelu(maps, approximate="tanh"),
    "relu in place by keyword": lambda maps: F.relu(maps, inplace=True),
    "relu in place by position": lambda maps: F.relu(maps, True),
    "relu by keywords alone": lambda maps: F.relu(input=maps, inplace=True),
    "adding a number": lambda maps: maps + 1.0,
    "subtracting from a number": lambda maps: 1.0 - maps,
    "sum of positive maps": lambda maps: F.max_pool2d(maps.relu() + maps.sigmoid(), 3, 1, 1),
    "positive less a number": lambda maps: F.max_pool2d(maps.relu() + -3.0, 3, 1, 1),
    "positive and clamped below zero": lambda maps: F.max_pool2d(maps.relu().clamp(-2.0, -1.0), 3, 1, 1),
    "sum with a blank map": lambda maps: F.pad(maps, (0, 0)) + maps,
    "product with a blank map": lambda maps: F.pad(maps, (0, 0)) * (maps + 1.0),
    "squeeze and excitation": lambda maps: maps * F.conv2d(maps.mean((2, 3), True), KERNEL[:, :, :1, :1]).sigmoid(),
    "interpolation to the same size": lambda maps: F.interpolate(maps, size=maps.shape[2:]),
    "concatenation by axis": lambda maps: torch.cat((maps, maps), axis=1),  # type: ignore[call-overload]
    "activation behind a permutation": lambda maps: F.gelu(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
}
# The kinds of maps that an operation receives: their tags differ, and so do the assumptions that a rule may make.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "blank": lambda images: images,
    "convolved": lambda images: F.conv2d(images, KERNEL, BIAS, 1, 1),
    "activated": lambda images: F.relu(F.conv2d(images, KERNEL, BIAS, 1, 1)),
    "swished": lambda images: F.silu(F.conv2d(images, KERNEL, BIAS, 1, 1)),
}


def photo(size: tuple[int, int]) -> Tensor:
    return weights(1, CHANNELS, *size)


def beyond(maps: Tensor) -> Tensor:
    """A convolution and a maximum, which in an image's last cells see the cells beyond.

    The convolution relies on which maps are known to be blank, the maximum on which are known not to be negative.
    """
    sums = F.conv2d(maps, weights(2, maps.shape[1], 3, 3).to(maps.dtype), None, 1, 1)
    return torch.cat((sums, F.max_pool2d(maps, 3, 1, 1)), 1)


def assert_as_alone(network: Callable[[Tensor], Tensor], place: Canvas) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.zeros(len(place.sizes), CHANNELS, *place.canvas)
    for image, size in zip(batch, place.sizes, strict=True):
        image[:, : size[0], : size[1]] = photo(size)[0]
    for kind, prepare in INPUTS.items():
        extent = Extent(torch.tensor(place.sizes), place.canvas, (1, 1), True, place.divisor)
        with AsIfAlone() as alone:
            images = alone.track(batch.clone(), extent, blank=True)
            if kind == "convolved":  # the padding may hold anything
                noise = torch.randn(batch.shape, generator=generator)
                images = alone.track(torch.where(extent.inside, batch, noise), extent)
            found = network(prepare(images))
            tracked = alone.tag_of(found) is not None
            behind = beyond(found) if tracked else None
        for number, size in enumerate(place.sizes):
            expected = network(prepare(photo(size)))
            assert_equal(found[number], expected[0], kind)
            if tracked:
                assert behind is not None
                assert tuple(alone.extent_of(found).cells[number].tolist()) == tuple(expected.shape[2:])
                assert_equal(behind[number], beyond(expected)[0], f"{kind}, then beyond the last cells")
        if tracked:
            assert tuple(alone.extent_of(found).canvas) == tuple(found.shape[2:])


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Equal in the cells of the image, up to the rounding of sums of numbers as large as the largest."""
    assert found.dtype == expected.dtype
    for axis, side in enumerate(expected.shape):
        found = found.narrow(axis, 0, side)
    rounding = 4e-3 if expected.dtype == torch.float16 else 1e-5
    allowed = rounding * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    assert difference <= allowed, f"{what}: {difference:.3g} apart, {allowed:.3g} is allowed"


def name_of(function: Any) -> str:
    return resolve_name(function) or function.__name__


def test_the_table_of_calls_covers_every_rule() -> None:
    assert CALLS.keys() == RULES.keys()
    assert {operation.name for operation in FUNCTIONS.values()} == RULES.keys()


@pytest.mark.parametrize("place", CANVASES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_every_function_computes_each_image_as_if_it_were_alone(function: Callable[..., Any], place: Canvas) -> None:
    call = OF_TORCH.get(function, CALLS[FUNCTIONS[function].name])
    assert_as_alone(lambda maps: call(function, maps), place)


@pytest.mark.parametrize("place", CANVASES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_branch_of_a_rule_computes_each_image_as_if_it_were_alone(variant: str, place: Canvas) -> None:
    assert_as_alone(VARIANTS[variant], place)


MAGNIFICATIONS: dict[str, Callable[[Tensor], Any]] = {
    "both sides": lambda maps: F.interpolate(maps, scale_factor=2.0),
    "one side": lambda maps: F.interpolate(maps, scale_factor=(1.0, 2.0)),
    "by four": lambda maps: F.interpolate(maps, scale_factor=4),
}


@pytest.mark.parametrize("place", CANVASES, ids=str)
@pytest.mark.parametrize("magnification", MAGNIFICATIONS)
def test_a_map_is_magnified_where_its_cells_tile_every_image(magnification: str, place: Canvas) -> None:
    def network(maps: Tensor) -> Tensor:
        tiles = F.conv2d(maps, weights(CHANNELS, CHANNELS, 4, 4), stride=4)
        return MAGNIFICATIONS[magnification](tiles)

    if place.divisor % 4 == 0:
        assert_as_alone(network, place)
    else:
        with pytest.raises(Unsupported, match="'nearest' interpolation to a size that depends on the canvas"):
            assert_as_alone(network, place)


IN_PLACE = [function for function, operation in FUNCTIONS.items() if operation.in_place]


@pytest.mark.parametrize("function", IN_PLACE, ids=name_of)
def test_an_activation_survives_an_operation_in_place_on_its_input(function: Callable[..., Any]) -> None:
    """The padding of an activation is blanked by computing it again from its input, unless that was overwritten."""
    call = CALLS[FUNCTIONS[function].name]

    def network(maps: Tensor) -> Tensor:
        before = maps * 2.0
        after = F.silu(before)
        call(function, before)
        return after

    assert_as_alone(network, CANVASES[1])


@pytest.mark.parametrize(
    "overwrite",
    [
        lambda maps: F.leaky_relu(maps, -1.0, True),
        lambda maps: F.leaky_relu(maps, -1.0, inplace=True),
        lambda maps: torch.mul(maps, -1.0, out=maps),
    ],
    ids=["by position", "by keyword", "by out"],
)
def test_an_activation_survives_a_switch_that_overwrites_its_input(overwrite: Callable[[Tensor], Tensor]) -> None:
    def network(maps: Tensor) -> Tensor:
        before = maps * 2.0
        after = F.silu(before)
        overwrite(before)
        return after

    assert_as_alone(network, CANVASES[1])


def test_every_name_of_an_in_place_operation_is_known() -> None:
    for home in HOMES:
        for name in RULES:
            for spelling in (f"{name}_", f"__i{name}__"):
                function = getattr(home, spelling, None)
                if function is not None:
                    assert FUNCTIONS[function].in_place, spelling
    assert {"relu_", "add_", "mul_", "clamp_", "__iadd__"} <= {function.__name__ for function in IN_PLACE}


def test_a_function_is_recognised_by_what_it_is_and_not_by_its_name() -> None:
    def relu(maps: Tensor) -> Tensor:
        return maps

    assert relu not in FUNCTIONS
    assert FUNCTIONS[F.relu].name == FUNCTIONS[torch.relu].name == FUNCTIONS[Tensor.relu_].name == "relu"
    assert functions_of(["float"]).keys() == {Tensor.float}  # torch.float is a type


def test_the_tensor_that_a_call_overwrites_is_found() -> None:
    maps, other = torch.zeros(1), torch.ones(1)
    relu, in_place, plain = FUNCTIONS[F.relu], FUNCTIONS[torch.relu_], FUNCTIONS[torch.add]
    assert isinstance(relu, Operation)
    assert relu.overwritten((maps,), {}) is None
    assert relu.overwritten((maps, False), {}) is None
    assert relu.overwritten((maps, True), {}) is maps
    assert relu.overwritten((maps,), {"inplace": True}) is maps
    assert relu.overwritten((), {"input": maps, "inplace": True}) is maps
    assert in_place.overwritten((maps,), {}) is maps
    assert plain.overwritten((maps, maps), {"out": other}) is other


def tracked(alone: AsIfAlone, *shape: int) -> Tensor:
    shape = shape or (1, CHANNELS, 8, 12)
    extent = Extent(torch.tensor([[4, 4]]), shape[2:], (1, 1), True, 4)
    return alone.track(torch.ones(shape), extent, blank=True)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda maps: maps.flatten(2), "torch.Tensor.flatten"),
        (lambda maps: maps.reshape(1, -1), "torch.Tensor.reshape"),
        (lambda maps: maps[:, :, 1:], "torch.Tensor.__getitem__"),
        (lambda maps: torch.roll(maps, 1, 3), "torch.roll"),
        (lambda maps: maps.flip(3), "torch.Tensor.flip"),
        (lambda maps: maps.cumsum(3), "torch.Tensor.cumsum"),
        (lambda maps: torch.softmax(maps, 3), "torch.softmax"),
        (lambda maps: maps @ maps.mT, "torch.Tensor.mT.__get__"),
        (lambda maps: torch.matmul(maps, torch.ones(12, 2)), "torch.matmul"),
        (lambda maps: F.conv_transpose2d(maps, KERNEL), "torch.nn.functional.conv_transpose2d"),
        (lambda maps: F.adaptive_max_pool2d(maps, 1), "adaptive_max_pool2d"),
        (lambda maps: maps.sum((2, 3)), "torch.Tensor.sum"),
        (lambda maps: 1.0 / maps, "torch.Tensor.__r"),
    ],
)
def test_an_operation_without_a_rule_is_refused_by_name(call: Callable[[Tensor], Any], name: str) -> None:
    with AsIfAlone() as alone, pytest.raises(Unsupported, match="unknown whether that mixes neighbouring") as caught:
        call(tracked(alone))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda maps: F.conv2d(maps, KERNEL[:, :, :2, :2], padding="same"), "even size on one side only"),
        (lambda maps: F.max_pool2d(maps, 3, 2, ceil_mode=True), "max pooling with ceil_mode"),
        (lambda maps: F.avg_pool2d(maps, 3, 2, ceil_mode=True), "average pooling with ceil_mode"),
        (lambda maps: F.adaptive_avg_pool2d(maps, (1, 2)), r"adaptively to \(1, 2\); only pooling to a single cell"),
        (lambda maps: maps.mean(3), r"a mean over the axes \[3\]"),
        (lambda maps: maps.mean(), r"a mean over the axes \[0, 1, 2, 3\]"),
        (lambda maps: F.interpolate(maps, scale_factor=2.0, mode="bilinear"), "'bilinear' interpolation"),
        (lambda maps: F.interpolate(maps, scale_factor=1.5), "'nearest' interpolation to a size that depends"),
        (lambda maps: F.interpolate(maps, size=(7, 7)), "to a size that depends on the canvas"),
        (lambda maps: F.interpolate(maps, scale_factor=2.0), "to a size that depends on the canvas"),  # half a pixel
        (lambda maps: torch.cat((maps, maps), 2), "joins feature maps other than by their channels"),
        (lambda maps: torch.cat((maps, torch.ones(maps.shape)), 1), "a concatenation on something that is not a"),
        (lambda maps: maps.chunk(2, 3), "splits feature maps other than by their channels"),
        (lambda maps: F.pad(maps, (1, 1), mode="reflect"), "pads a feature map other than with zeros"),
        (lambda maps: F.pad(maps, (1, 1), value=1.0), "pads a feature map other than with zeros"),
        (lambda maps: F.pad(maps, (-1, 1)), "pads a feature map other than with zeros"),
        (lambda maps: F.linear(maps, torch.ones(2, 12)), "a linear layer .* across the cells"),
        (lambda maps: F.layer_norm(maps.permute(0, 2, 3, 1), (12, 4)), "normalises across the cells"),
        (lambda maps: F.conv2d(maps.permute(0, 2, 3, 1), weights(1, 8, 1, 1)), "a convolution on something that is"),
        (lambda maps: torch.ones(1) / maps, "divides by a feature map"),
        (lambda maps: maps + torch.ones(maps.shape), "add on a feature map and on a tensor that was not computed"),
        (lambda maps: maps + F.pad(maps, (0, 1)).mul(1.0), r"joins maps of \(8, 13\) and \(8, 12\) cells"),
    ],
)
def test_a_call_that_a_rule_cannot_keep_within_an_image_is_refused(
    call: Callable[[Tensor], Any], complaint: str
) -> None:
    with AsIfAlone() as alone, pytest.raises(Unsupported, match=complaint):
        call(tracked(alone))


def test_tensors_that_are_not_computed_from_the_images_are_not_changed() -> None:
    with AsIfAlone() as alone:
        maps = tracked(alone)
        assert maps.shape == (1, CHANNELS, 8, 12)
        assert maps.dtype is torch.float32
        assert torch.ones(2).flip(0).tolist() == [1.0, 1.0]  # not computed from the images
        with pytest.raises(Unsupported, match="the network's output is not a feature map"):
            alone.extent_of(torch.ones(1, 1, 8, 12))


def test_the_extent_behind_a_window_equals_the_one_computed_by_hand() -> None:
    """7 × 10 cells of a canvas of 12 × 16, a window of 3 moved by 2, one cell of padding on each side."""
    extent = Extent(torch.tensor([[7, 10]]), (12, 16), (1, 1), True, 1)
    behind = extent.after((2 - 2 * 1, 2 - 2 * 1), (2, 2))
    assert behind.cells.tolist() == [[4, 5]]  # ceil(7 / 2), ceil(10 / 2)
    assert behind.canvas == (6, 8)
    assert behind.stride == (2, 2)
    assert behind.of_image.tolist() == [[7, 10]]
    assert not behind.whole()  # 7 is not a multiple of 2
    assert extent.after((0, 0), (1, 1)) is extent
    assert extent.after((0, 0), (2, 2)) is behind  # computed once
    without_padding = extent.after((2, 2), (1, 1))
    assert without_padding.cells.tolist() == [[5, 8]]  # 7 - 2, 10 - 2
    assert not without_padding.rounded_up
    assert extent.inside[0, 0].sum() == 7 * 10


def test_windows_that_tile_an_image_keep_its_cells_whole() -> None:
    extent = Extent(torch.tensor([[8, 12]]), (16, 16), (1, 1), True, 4)
    tiles = extent.after((1, 1), (2, 2))  # a window of 2 moved by 2
    assert tiles.cells.tolist() == [[4, 6]]
    assert tiles.whole()
    assert not tiles.after((1, 1), (2, 2)).after((1, 1), (2, 2)).whole()  # stride 8 does not divide multiples of 4
    assert tiles.magnified((2, 2), (16, 16)).cells.tolist() == [[8, 12]]
