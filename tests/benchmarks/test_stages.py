"""Every layer of a graph is assigned to the stage of the detector that it belongs to."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from benchmarks.profile import BETWEEN, _by_cuts, _sum_up, time_per_stage
from benchmarks.stages import BACKBONE, HEAD, REST, RPN, STAGES, cut_in_stages, spread
from service.engine.interface import DETECTIONS, PROPOSALS
from service.engine.providers import CPU

EMBEDDED = Path(__file__).parents[2] / "model_store" / "shapes" / "1" / "model.onnx"
PIXELS = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def pyramid() -> onnx.GraphProto:
    """A minimal detector with two maps: both go through the RPN's only layer, and only the finer one is pooled.

    images ─ stem ─┬─ fine ───┬─ rpn ─ TopK ─┐
                   │          └──────────────┼─ RoiAlign ─ fc ─ Softmax ─ TopK
                   └─ coarse ─── rpn ─ TopK ─┘
    """
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "stem.weight"], ["stem"]),
        node("Conv", ["stem", "fine.weight"], ["fine"]),
        node("Conv", ["stem", "coarse.weight"], ["coarse"]),
        node("Conv", ["fine", "rpn.weight"], ["fine_scores"]),
        node("Conv", ["coarse", "rpn.weight"], ["coarse_scores"]),
        node("TopK", ["fine_scores"], ["a", "a_places"]),
        node("TopK", ["coarse_scores"], ["b", "b_places"]),
        node("Concat", ["a", "b"], ["objectness"]),
        node("Gather", ["objectness", "a_places"], ["proposals"]),
        node("ReduceSum", ["objectness"], ["num_proposals"]),
        node("Shape", ["coarse_scores"], ["shape"]),
        node("RoiAlign", ["fine", "proposals"], ["pooled"]),
        node("Reshape", ["pooled", "shape"], ["flat"]),
        node("Transpose", ["fc.weight"], ["turned"]),
        node("MatMul", ["flat", "turned"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"]),
        node("TopK", ["probabilities"], ["scores", "labels"]),
        node("MatMul", ["scores", "probabilities"], ["boxes"]),  # multiplies values, not weights, so it is not a layer
        node("ReduceSum", ["scores"], ["num_detections"]),
    ]
    weights = ["stem.weight", "fine.weight", "coarse.weight", "rpn.weight", "fc.weight"]
    return helper.make_graph(
        nodes,
        "pyramid",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in [*DETECTIONS, *PROPOSALS]],
        [helper.make_tensor(name, TensorProto.FLOAT, [1, 1], [1.0]) for name in weights],
    )


def test_a_pyramid_map_that_only_the_rpn_reads_belongs_to_the_backbone() -> None:
    graph = pyramid()
    cuts = cut_in_stages(graph)
    stage_of = {node.output[0]: stage for node, stage in zip(graph.node, cuts.stage_of, strict=True)}
    assert {name for name, stage in stage_of.items() if stage == BACKBONE} == {"stem", "fine", "coarse"}
    assert {name for name, stage in stage_of.items() if stage == RPN} == {
        *("fine_scores", "coarse_scores", "a", "b", "objectness", "proposals", "num_proposals")
    }
    assert {name for name, stage in stage_of.items() if stage == HEAD} == {
        "pooled",
        "flat",
        "turned",
        "logits",
        "shape",
    }
    assert {name for name, stage in stage_of.items() if stage == REST} == {
        *("probabilities", "scores", "boxes", "num_detections")
    }
    assert cuts.features == ["fine"]
    assert cuts.head == ["logits"]


def test_each_layer_of_the_embedded_detector_is_in_the_stage_that_its_parameter_name_implies() -> None:
    graph = onnx.load(EMBEDDED).graph
    parts = {"backbone": BACKBONE, "rpn": RPN, "head": HEAD}  # the weights of the head's layers have lost their names
    constants = {tensor.name for tensor in graph.initializer}
    found = {
        name: stage
        for node, stage in zip(graph.node, cut_in_stages(graph).stage_of, strict=True)
        for name in node.input
        if name in constants and name.split(".")[0] in parts
    }
    assert {name: parts[name.split(".")[0]] for name in found} == found
    assert set(found.values()) == {BACKBONE, RPN, HEAD}


def test_a_node_that_the_optimiser_adds_belongs_to_the_stage_whose_result_it_reads() -> None:
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["first"]),  # reads no known stage, so it belongs to its reader
        node("Conv", ["first"], ["known0"]),
        node("ReorderOutput", ["known0"], ["plain"]),
        node("Conv", ["plain"], ["known1"]),
        node("Add", ["known0", "known1"], ["sum"]),  # belongs to the later of the two
    ]
    graph = helper.make_graph(nodes, "optimised", [], [])
    known = {"known0": BACKBONE, "known1": RPN}
    assert spread(graph, lambda one: known.get(one.output[0])) == [BACKBONE, BACKBONE, BACKBONE, RPN, RPN]


def test_a_graph_without_a_head_is_refused() -> None:
    graph = pyramid()
    kept = [node for node in graph.node if node.output[0] != "logits"]
    del graph.node[:]
    graph.node.extend(kept)
    with pytest.raises(ValueError, match="is it a Faster R-CNN"):
        cut_in_stages(graph)


def test_the_profile_counts_every_run_but_the_first() -> None:
    def run(begin: int, microseconds: int) -> dict:
        return {"name": "model_run", "cat": "Session", "ts": begin, "dur": microseconds}

    def kernel(name: str, begin: int, microseconds: int) -> dict:
        return {"name": f"{name}_kernel_time", "cat": "Node", "ts": begin, "dur": microseconds}

    events = [
        *(kernel("conv", 1, 9000), run(0, 9500)),  # the first
        *(kernel("conv", 10_001, 3000), kernel("fc", 14_000, 1000), run(10_000, 5000)),
        *(kernel("conv", 20_001, 5000), kernel("fc", 26_000, 2000), run(20_000, 9000)),
    ]
    taken = _sum_up(events, {"conv": BACKBONE, "fc": HEAD}, n=2)
    # Two runs of two images: (3 + 5) / 4 and (1 + 2) / 4 ms. Of 5 + 9 ms in total, 3 ms are in no node.
    assert taken == pytest.approx({BACKBONE: 2.0, RPN: 0.0, HEAD: 0.75, REST: 0.0, BETWEEN: 0.75})


def test_a_real_profile_has_time_in_every_stage_and_no_more_than_the_elapsed_time() -> None:
    taken = time_per_stage(EMBEDDED, PIXELS, (96, 128), [2], CPU, threads=1, seconds=0.1)[2]
    assert list(taken) == [*STAGES, BETWEEN]
    assert all(taken[stage] > 0 for stage in STAGES)
    assert taken[BACKBONE] > taken[REST]  # nine convolutions against a few hundred boxes
    json.dumps(taken)  # plain numbers, since they go to other processes and to files


def test_a_graph_cut_after_each_stage_computes_what_the_whole_graph_computes() -> None:
    from benchmarks.profile import _feed, _up_to

    model = onnx.load(EMBEDDED)
    feed = _feed(PIXELS, (96, 128), 2)
    whole = onnxruntime.InferenceSession(str(EMBEDDED), providers=[CPU])
    cuts = cut_in_stages(model.graph)
    for outputs in (list(PROPOSALS), [*PROPOSALS, *cuts.head], [*cuts.features]):
        piece = onnxruntime.InferenceSession(_up_to(model, outputs), providers=[CPU])
        found = dict(zip(outputs, piece.run(outputs, feed), strict=True))
        assert all(np.isfinite(values).all() for values in found.values())
        for name in set(outputs) & set(PROPOSALS):
            np.testing.assert_allclose(found[name], whole.run([name], feed)[0], atol=1e-4)
    taken = _by_cuts(model, feed, CPU, threads=1, seconds=0.1)
    assert list(taken) == list(STAGES)
    assert taken[BACKBONE] > 0
