"""Dropping padding rows and putting the results back."""

import torch
from torch import nn

from faster_rcnn.detector.padded_rows import linear_of_channels_last, real_rows


def test_real_rows_are_taken_out_and_put_back() -> None:
    # The images have 2, 0 and 3 real rows of 3: rows 0, 1, 6, 7 and 8 of 9. Row 0 is repeated at the end.
    rows = real_rows(torch.tensor([2, 0, 3]), 3)
    values = torch.arange(9)
    assert rows.take(values).tolist() == [0, 1, 6, 7, 8, 0]
    assert rows.images.tolist() == [0, 0, 2, 2, 2, 0]
    (back,) = rows.put_back(rows.take(values))
    assert back[:2].tolist() == [0, 1]
    assert back[6:].tolist() == [6, 7, 8]


def test_one_row_remains_if_no_row_is_real() -> None:
    rows = real_rows(torch.tensor([0, 0]), 4)
    assert rows.take(torch.arange(8)).tolist() == [0]
    assert rows.put_back(torch.tensor([5]))[0].tolist() == [5] * 8


def test_a_linear_layer_has_the_same_result_for_channels_last() -> None:
    torch.manual_seed(0)
    layer, regions = nn.Linear(5 * 2 * 3, 7), torch.randn(4, 5, 2, 3)
    found = linear_of_channels_last(layer, regions.permute(0, 2, 3, 1))
    torch.testing.assert_close(found, layer(regions.flatten(1)))
