"""RoI pooling, compared with torchvision's operators."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops.poolers import LevelMapper

from faster_rcnn.detector.roi_pooling import atlas, level_of, pool_regions, range_max_pool, roi_align, roi_max_pool

STRIDE = 16


def features_and_rois(n: int, h: int, w: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Non-negative features, and regions of all sizes; some touch the border and one is a single pixel."""
    torch.manual_seed(h * w)
    features = torch.randn(n, 12, h, w).relu()
    limit = torch.tensor([w, h]).float() * STRIDE
    first, second = torch.rand(n, count, 2) * limit, torch.rand(n, count, 2) * limit
    rois = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=2)
    rois[:, 0] = torch.tensor([0.0, 0.0, w * STRIDE, h * STRIDE])
    rois[:, 1] = torch.tensor([w * STRIDE - 1.0, h * STRIDE - 1.0, w * STRIDE, h * STRIDE])
    rois[:, 2] = torch.tensor([8.0, 24.0, 40.0, 56.0])  # the corners lie at half cells, where rounding matters
    return features, rois


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(18, 24), (38, 63), (1, 5)])
def test_roi_align_agrees_with_torchvision_on_a_larger_canvas(h: int, w: int, samples: int) -> None:
    features, rois = features_and_rois(2, h, w, 200)
    expected = torchvision.ops.roi_align(
        F.pad(features, (0, 1, 0, 1)), list(rois), 7, 1 / STRIDE, sampling_ratio=samples, aligned=True
    )
    found = roi_align(features, rois, 7, STRIDE, samples).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("h", "w"), [(18, 24), (38, 63), (63, 38), (1, 5), (105, 2)])
def test_roi_max_pooling_by_range_queries_equals_torchvision_bit_for_bit(h: int, w: int) -> None:
    features, rois = features_and_rois(2, h, w, 300)
    expected = torchvision.ops.roi_pool(features, list(rois), 7, 1 / STRIDE)
    found = range_max_pool(features, rois, 7, STRIDE)
    assert torch.equal(found, expected)


def test_roi_max_pooling_takes_the_maximum_of_each_bin() -> None:
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    whole = torch.tensor([[[0.0, 0.0, 63.0, 63.0]]])
    # rounded to cells 0..4, bins of 5/2 = 2.5 cells: rows 0..2 and 2..3 (the map ends there)
    assert roi_max_pool(features, whole, 2, STRIDE).flatten().tolist() == [10.0, 11.0, 14.0, 15.0]


@pytest.mark.parametrize("pool", [roi_align, roi_max_pool])
def test_a_larger_canvas_does_not_change_the_pooled_features(pool: object) -> None:
    assert callable(pool)
    features, rois = features_and_rois(1, 9, 12, 100)
    larger = F.pad(features, (0, 7, 0, 3))
    torch.testing.assert_close(pool(larger, rois, 7, STRIDE), pool(features, rois, 7, STRIDE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", [roi_align, roi_max_pool])
def test_gradients_pass_through_the_pooling(pool: object) -> None:
    assert callable(pool)
    features, rois = features_and_rois(1, 9, 12, 20)
    features.requires_grad_()
    pool(features, rois, 7, STRIDE).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


STRIDES = (4, 8, 16, 32)  # P2 … P5
side = st.floats(1, 2000, width=32)


@given(st.lists(st.tuples(side, side), min_size=1, max_size=30))
def test_regions_are_assigned_to_the_same_maps_as_in_torchvision(sides: list[tuple[float, float]]) -> None:
    rois = torch.tensor([[10.0, 20.0, 10 + width, 20 + height] for width, height in sides])
    areas = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    clear = torch.stack([(areas / border**2 - 1).abs() for border in (112, 224, 448)]).amin(dim=0) > 1e-4
    expected = LevelMapper(2, 5)([rois])
    assert torch.equal(level_of(rois[None], STRIDES)[0][clear], expected[clear])


def test_a_region_of_224_pixels_belongs_to_stride_16() -> None:
    """Eq. 1 of Lin et al. 2017: k0 = 4 for 224, one less for half the side, clamped to P2 … P5."""
    rois = torch.tensor([[0.0, 0, s, s] for s in (20.0, 111.9, 112, 223.9, 224, 447.9, 448, 2000)])
    assert level_of(rois[None], STRIDES)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    wide = torch.tensor([[[0.0, 0, 448, 112]]])  # √(448 · 112) = 224
    assert level_of(wide, STRIDES).item() == 2


def pyramid_and_rois() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Signed maps of a 256 × 352 canvas, and regions of several levels in both images, some at the borders."""
    torch.manual_seed(5)
    maps = [torch.randn(2, 6, 256 // stride, 352 // stride) for stride in STRIDES]
    limit = torch.tensor([352.0, 256.0])
    first, second = torch.rand(2, 150, 2) * limit, torch.rand(2, 150, 2) * limit
    rois = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=2)
    rois[:, 0] = torch.tensor([0.0, 0, 352, 256])
    rois[:, 1] = torch.tensor([340.0, 250, 352, 256])
    rois[:, 2] = torch.tensor([0.0, 0, 3, 2])
    rois[:, 3] = torch.tensor([0.0, 100, 352, 256])
    assert level_of(rois, STRIDES).unique().tolist() == [0, 1, 2]  # P5 begins at 448²
    return maps, rois


@pytest.mark.parametrize("pooling", ["align", "max"])
def test_each_region_is_pooled_from_its_own_map(pooling: str) -> None:
    maps, rois = pyramid_and_rois()
    if pooling == "max":
        maps = [one.relu() for one in maps]
    found = pool_regions(maps, STRIDES, rois, 7, pooling)
    level = level_of(rois, STRIDES)
    for number, (one, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        if pooling == "max":
            expected = torchvision.ops.roi_pool(one, list(rois), 7, 1 / stride)
        else:  # with the zeros that a larger canvas has at the map's end
            expected = torchvision.ops.roi_align(F.pad(one, (0, 1, 0, 1)), list(rois), 7, 1 / stride, 2, aligned=True)
        chosen = level == number
        torch.testing.assert_close(found[chosen], expected.unflatten(0, (2, -1))[chosen], rtol=1e-4, atol=1e-4)


def test_a_single_map_is_pooled_directly() -> None:
    features, rois = features_and_rois(2, 9, 12, 30)
    assert torch.equal(pool_regions([features], (16, 32), rois, 7, "align"), roi_align(features, rois, 7, 16))
    assert torch.equal(pool_regions([features], (16,), rois, 7, "max"), roi_max_pool(features, rois, 7, 16))


@pytest.mark.parametrize("pooling", ["align", "max"])
def test_a_larger_canvas_does_not_change_the_pooled_features_of_a_pyramid(pooling: str) -> None:
    maps, rois = pyramid_and_rois()
    maps = [one.relu() for one in maps]
    larger = [F.pad(one, (0, 64 // stride, 0, 96 // stride)) for one, stride in zip(maps, STRIDES, strict=True)]
    found, expected = (pool_regions(one, STRIDES, rois, 7, pooling) for one in (larger, maps))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_atlas_has_every_map_at_the_row_returned() -> None:
    maps = [torch.arange(1.0, 7.0).reshape(1, 1, 2, 3), torch.tensor([[[[9.0]]]])]
    stacked, tops = atlas(maps)
    assert tops == [1, 6]  # a duplicated row, two rows of the first map, two of zeros, a duplicated row
    assert stacked[0, 0].tolist() == [
        [1, 1, 2, 3, 0, 0], [1, 1, 2, 3, 0, 0], [4, 4, 5, 6, 0, 0], [0] * 6, [0] * 6,
        [9, 9, 0, 0, 0, 0], [9, 9, 0, 0, 0, 0], [0] * 6, [0] * 6,
    ]  # fmt: skip
