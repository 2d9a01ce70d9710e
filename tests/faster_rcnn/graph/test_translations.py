"""Both exported forms of RoI max pooling agree with `torchvision.ops.roi_pool` bit for bit."""

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from faster_rcnn.detector.roi_pooling import LONGEST_BIN, range_max_pool
from faster_rcnn.graph.translations import OPSET
from service.engine.providers import CPU, open_session, session_options

SIZE, STRIDE = 7, 16
LONGEST_MAP = SIZE * (LONGEST_BIN - 1)  # cells per side: up to this size the table covers every bin


class Pooling(nn.Module):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return range_max_pool(features, rois, SIZE, STRIDE)


@pytest.fixture(scope="module")
def by_table(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    sides = {0: torch.export.Dim("N"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.onnx.export(
        Pooling().eval(),
        (torch.rand(2, 3, 12, 14), torch.rand(2, 5, 4) * 100),
        dynamo=True,
        dynamic_shapes=(sides, {0: sides[0], 1: torch.export.Dim("P")}),
        opset_version=OPSET,
        input_names=["features", "rois"],
        output_names=["pooled"],
        verbose=False,
    )
    assert program is not None
    path = tmp_path_factory.mktemp("pooling") / "model.onnx"
    program.save(str(path))
    return open_session(path.read_bytes(), CPU, session_options(1))


@pytest.fixture(scope="module")
def by_operator() -> onnxruntime.InferenceSession:
    """ONNX's own MaxRoiPool, which has no CUDA kernel."""
    node = helper.make_node(
        "MaxRoiPool", ["features", "rois"], ["pooled"], pooled_shape=[SIZE, SIZE], spatial_scale=1 / STRIDE
    )
    shapes = {"features": ["N", "C", "h", "w"], "rois": ["R", 5], "pooled": ["R", "C", SIZE, SIZE]}
    features, rois, pooled = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    )
    graph = helper.make_graph([node], "pooling", [features, rois], [pooled])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return open_session(model.SerializeToString(), CPU, session_options(1))


# Quarters of a pixel are exact in float32 and include half cells, where roundings differ. Some boxes leave the map.
corner = st.integers(-4 * STRIDE * 10, 4 * STRIDE * (LONGEST_MAP + 10)).map(lambda quarters: quarters / 4)
half_cell = st.integers(0, LONGEST_MAP).map(lambda cells: cells * STRIDE + STRIDE / 2)
boxes = st.lists(st.tuples(*[corner | half_cell] * 4), min_size=1, max_size=8)


@settings(deadline=None)  # no bound on time
@given(boxes, st.integers(1, LONGEST_MAP), st.integers(1, LONGEST_MAP))
@example([(0, 0, LONGEST_MAP * STRIDE, LONGEST_MAP * STRIDE)], LONGEST_MAP, LONGEST_MAP)  # the longest bins
@example([(8, 24, 40, 56), (0, 0, 0, 0), (31, 31, 32, 32)], 5, 5)  # halves round up; a box without area takes one cell
@example(
    [(-8, -24, -8, 8), (7.9999995, 7.9999995, 24, 24)], 3, 3
)  # -0.5 rounds to -1; a number just below a half rounds down
@example([(-900, -900, -800, -800), (2000, 2000, 2400, 2400)], 20, 20)  # outside: zero
def test_the_table_and_the_operator_are_torchvisions_pooling_bit_for_bit(
    by_table: onnxruntime.InferenceSession,
    by_operator: onnxruntime.InferenceSession,
    corners: list[tuple[float, ...]],
    h: int,
    w: int,
) -> None:
    boxes = np.array([[min(x, u), min(y, v), max(x, u), max(y, v)] for x, y, u, v in corners], np.float32)
    boxes[:, 2:] = np.minimum(
        boxes[:, 2:], boxes[:, :2] + STRIDE * (LONGEST_MAP - 1)
    )  # within a map that the table covers
    rois = np.stack([boxes, boxes[::-1]])  # two images
    features = np.random.default_rng(h * w).standard_normal((2, 3, h, w)).astype(np.float32).clip(0)
    expected = torchvision.ops.roi_pool(
        torch.from_numpy(features), [torch.from_numpy(one) for one in rois.copy()], SIZE, 1 / STRIDE
    ).numpy()
    (found,) = by_table.run(None, {"features": features, "rois": rois})
    np.testing.assert_array_equal(found, expected)
    image = np.repeat([[0], [1]], len(boxes), axis=0).astype(np.float32)
    (found,) = by_operator.run(None, {"features": features, "rois": np.hstack([image, rois.reshape(-1, 4)])})
    np.testing.assert_array_equal(found, expected)
