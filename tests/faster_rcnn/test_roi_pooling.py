import pytest
import torch
import torch.nn.functional as F
import torchvision

from faster_rcnn.roi_pooling import range_max_pool, roi_align, roi_max_pool

STRIDE = 16


def features_and_rois(n: int, h: int, w: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features like a ReLU's, and regions of all sizes, some of them on the border and some a single pixel."""
    torch.manual_seed(h * w)
    features = torch.randn(n, 12, h, w).relu()
    limit = torch.tensor([w, h]).float() * STRIDE
    first, second = torch.rand(n, count, 2) * limit, torch.rand(n, count, 2) * limit
    rois = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=2)
    rois[:, 0] = torch.tensor([0.0, 0.0, w * STRIDE, h * STRIDE])
    rois[:, 1] = torch.tensor([w * STRIDE - 1.0, h * STRIDE - 1.0, w * STRIDE, h * STRIDE])
    rois[:, 2] = torch.tensor([8.0, 24.0, 40.0, 56.0])  # halves of a cell: where rounding shows
    return features, rois


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(18, 24), (38, 63), (1, 5)])
def test_roi_align_equals_torchvisions_on_a_larger_canvas(h: int, w: int, samples: int) -> None:
    features, rois = features_and_rois(2, h, w, 200)
    expected = torchvision.ops.roi_align(
        F.pad(features, (0, 1, 0, 1)), list(rois), 7, 1 / STRIDE, sampling_ratio=samples, aligned=True
    )
    found = roi_align(features, rois, 7, STRIDE, samples).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("h", "w"), [(18, 24), (38, 63), (63, 38), (1, 5), (105, 2)])
def test_roi_max_pooling_by_range_queries_equals_torchvisions_bit_for_bit(h: int, w: int) -> None:
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
def test_a_larger_canvas_changes_nothing(pool: object) -> None:
    assert callable(pool)
    features, rois = features_and_rois(1, 9, 12, 100)
    larger = F.pad(features, (0, 7, 0, 3))
    torch.testing.assert_close(pool(larger, rois, 7, STRIDE), pool(features, rois, 7, STRIDE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", [roi_align, roi_max_pool])
def test_features_learn_through_the_pooling(pool: object) -> None:
    assert callable(pool)
    features, rois = features_and_rois(1, 9, 12, 20)
    features.requires_grad_()
    pool(features, rois, 7, STRIDE).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
