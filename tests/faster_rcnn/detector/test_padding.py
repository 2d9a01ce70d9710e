"""Features inside and outside an image on a canvas."""

import pytest
import torch
import torch.nn.functional as F

from faster_rcnn.detector.padding import blank_outside, inside, mean_inside, outside_offset, relu_inside


def test_a_mean_covers_only_the_image() -> None:
    features = torch.tensor([[[[1.0, 3.0, 50.0], [5.0, 7.0, 50.0]]]])
    # 17 × 32 pixels at stride 16 are 2 × 2 cells: (1 + 3 + 5 + 7) / 4;  16 × 32 are 1 × 2: (1 + 3) / 2
    for size, mean in (((17, 32), 4.0), ((16, 32), 2.0), ((0, 0), 0.0)):
        assert mean_inside(features, torch.tensor([size]), 16).item() == mean


def test_a_cell_is_inside_if_it_covers_a_pixel_of_the_image() -> None:
    # 17 pixels at stride 16 are ceil(17 / 16) = 2 cells, 16 are 1, 0 are none
    found = inside(torch.tensor([[17, 16], [0, 48]]), 16, 3, 3)
    assert found[0].int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert not found[1].any()


def test_features_outside_the_image_become_zero() -> None:
    features = torch.randn(1, 4, 3, 3)
    sizes = torch.tensor([[32, 48]])  # 2 × 3 cells at stride 16
    blank = blank_outside(features, sizes, 16)
    assert torch.equal(blank[:, :, :2], features[:, :, :2])
    assert blank[:, :, 2].eq(0).all()
    assert torch.equal(relu_inside(features, sizes, 16, (48, 48)), F.relu(blank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_offset_of_a_graph_makes_an_activation_zero_outside_the_image(dtype: torch.dtype) -> None:
    features = torch.tensor([[[[5.0, 60000.0]], [[-1.0, 2.0]]]], dtype=dtype).clamp(max=20000)
    mask = torch.tensor([[[[True, False]]]])
    found = F.relu(features + outside_offset(mask, 2, dtype))
    assert found.flatten().tolist() == [5, 0, 0, 0]
