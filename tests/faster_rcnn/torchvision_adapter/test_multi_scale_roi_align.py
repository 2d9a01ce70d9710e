"""Regions pooled on a canvas are those that torchvision's MultiScaleRoIAlign pools from each image alone."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from faster_rcnn.torchvision_adapter.internals import fixed_scales
from faster_rcnn.torchvision_adapter.multi_scale_roi_align import (
    FRAME,
    Sampling,
    align_on_all_maps,
    align_on_one_map,
    frame,
    level_of,
)

STRIDES = (4, 8, 16)
CANVAS = (96, 128)
SIZES = ((64, 96), (96, 48), (32, 32))  # height, width of each image; multiples of the coarsest stride


def sampling(ratio: int = 2, strides: tuple[int, ...] = STRIDES) -> Sampling:
    return Sampling((3, 5), ratio, strides, canonical_side=48.0, canonical_level=3)


def pyramid(strides: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Maps [3, 2, h, w] with noise outside the images, and the images' cells on each, int64 [3, 2]."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(3, 2, CANVAS[0] // s, CANVAS[1] // s, generator=generator) for s in strides]
    return maps, [torch.tensor(SIZES) // s for s in strides]


def regions(height: int, width: int, count: int = 40) -> Tensor:
    """Regions of all sizes within an image, among them empty ones and ones on its far border."""
    generator = torch.Generator().manual_seed(height)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    corners[0] = torch.tensor([[width, height], [width, height]])
    corners[1] = torch.tensor([[0, 0], [width, height]])
    corners[2] = torch.tensor([[width - 1, 0], [width, height]])
    return corners.flatten(1)


def by_torchvision(maps: list[Tensor], cells: list[Tensor], image: int, rois: Tensor, how: Sampling) -> Tensor:
    names = [str(number) for number in range(len(maps))]
    pool = MultiScaleRoIAlign(names, how.size, how.ratio, canonical_scale=48, canonical_level=3)
    own = {
        name: one[image : image + 1, :, : reach[image, 0], : reach[image, 1]]
        for name, one, reach in zip(names, maps, cells, strict=True)
    }
    with fixed_scales(pool, how.strides):
        return pool(own, [rois], [SIZES[image]])


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("strides", [(4, 8, 16), (8, 16), (16,), (4, 16)], ids=str)
def test_pooling_from_all_maps_on_one_sheet_agrees_with_torchvision(strides: tuple[int, ...], ratio: int) -> None:
    """Between strides 4 and 16 the level of stride 8 is missing: torchvision returns zeros for its regions."""
    maps, cells = pyramid(strides)
    how = sampling(ratio, strides)
    rois = [regions(*size) for size in SIZES]
    images = torch.arange(3).repeat_interleave(len(rois[0]))
    found = align_on_all_maps(maps, cells, torch.cat(rois), images, how).unflatten(0, (3, -1))
    for image, of_image in enumerate(rois):
        expected = by_torchvision(maps, cells, image, of_image, how)
        torch.testing.assert_close(found[image], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_pooling_from_one_map_by_matrix_products_agrees_with_torchvision(ratio: int) -> None:
    maps, cells = pyramid((16,))
    how = sampling(ratio, (16,))
    rois = torch.stack([regions(*size) for size in SIZES])
    found = align_on_one_map(maps[0], rois, cells[0], how)
    for image in range(3):
        expected = by_torchvision(maps, cells, image, rois[image], how)
        torch.testing.assert_close(found[image].permute(0, 3, 1, 2), expected, atol=2e-5, rtol=1e-4)


def test_the_level_of_a_region_agrees_with_torchvision() -> None:
    rois = torch.cat([regions(96, 128, 200), torch.tensor([[0.0, 0.0, side, side] for side in (24, 48, 96)])])
    expected = LevelMapper(2, 4, 48, 3)([rois])  # strides 4 to 16 are 2² to 2⁴
    assert level_of(rois, sampling()).tolist() == expected.tolist()
    assert level_of(rois, sampling())[-3:].tolist() == [0, 1, 2]  # 48 pixels: level 3, the second map


def test_beyond_an_image_its_last_row_and_column_are_repeated() -> None:
    features = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]])[None, None]  # the third column is padding
    framed = frame(features, torch.tensor([[2, 2]]))
    assert framed.shape == (1, 1, 2 + FRAME, 3 + FRAME)
    assert framed[0, 0].tolist() == [[1, 2, 2, 2, 2], [3, 4, 4, 4, 4], [3, 4, 4, 4, 4], [3, 4, 4, 4, 4]]


def test_only_the_first_of_several_maps_with_equal_strides_is_used() -> None:
    assert sampling(strides=(16, 16)).maps == 1
    assert sampling(strides=(8, 16)).maps == 2


def test_fixed_scales_are_restored_afterwards() -> None:
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2)
    with fixed_scales(pool, (4, 8)):
        assert pool.scales == [0.25, 0.125]
        assert (pool.map_levels.k_min, pool.map_levels.k_max) == (2, 3)
    assert pool.scales is None
    assert pool.map_levels is None
