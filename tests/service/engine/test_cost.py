"""The estimate of a version's memory and classes, before it runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine import onnx_subgraph
from service.engine.cost import WEIGHTS_FACTOR, Inspection, shapes
from service.engine.interface import PROPOSALS
from service.engine.model import load_model
from tests.service import graphs

ROOT = Path(__file__).parents[3]


def inspect(graph: bytes, canvases) -> Inspection:
    return Inspection(graph, onnx_subgraph.extract(graph, list(PROPOSALS)), canvases)


@pytest.mark.parametrize("name", ["shapes", "bccd"])
def test_the_classes_of_the_embedded_models_are_counted(embedded, name):
    model = load_model(embedded.parents[1] / name / "1")
    assert inspect(model.graph, model.card.geometry.canvases).classes == len(model.card.labels)


def test_classes_that_the_graph_does_not_show_are_unknown():
    assert inspect(graphs.graph().SerializeToString(), [(64, 96)]).classes is None


def with_softmax(lengths: list[int]) -> bytes:
    """A graph whose scores depend on the first of several softmaxes, each over so many values."""
    model = graphs.graph()
    for index, length in enumerate(lengths):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, length), np.float32), f"logits{index}"))
        model.graph.node.append(helper.make_node("Softmax", [f"logits{index}"], [f"softmax{index}"]))
    return model.SerializeToString()


@pytest.mark.parametrize(("lengths", "classes"), [([7], 6), ([7, 7], 6), ([7, 3], None), ([1], 0)])
def test_the_softmax_of_the_head_counts_the_classes_and_the_background(lengths, classes):
    assert inspect(with_softmax(lengths), [(64, 96)]).classes == classes


def test_the_shape_of_every_tensor_is_inferred_without_the_weights(embedded):
    graph = load_model(embedded).graph
    skeleton = onnx_subgraph.skeleton(graph, 4096)
    found = shapes(skeleton, (288, 384))
    assert len(skeleton.graph) < len(graph) / 10
    assert found["proposals"].shape[0::2] == [1, 4]
    assert found["boxes"].element == "float"
    written = {name for node in onnx_subgraph.nodes(graph) for name in node.outputs}
    assert set(found) == written


def test_packed_and_unpacked_dimensions_of_weights_are_read():
    weights = numpy_helper.from_array(np.zeros((2, 3, 500), np.float32), "weights")
    unpacked = b"".join(b"\x08" + bytes([size]) if size < 128 else b"\x08\xf4\x03" for size in (2, 3, 500))
    other = TensorProto(data_type=TensorProto.FLOAT, name="others", raw_data=weights.raw_data)
    made = helper.make_graph(
        [helper.make_node("Add", ["weights", "others"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 500])],
        [weights, other],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    # the second tensor has no dimensions yet: write them in the other of the two ways that protobuf allows
    (tensor,) = [each.SerializeToString() for each in made.initializer if each.name == "others"]
    longer = unpacked + tensor
    skeleton = onnx_subgraph.skeleton(_with_initializer(model, tensor, longer), 100)
    inputs = onnx.load_from_string(skeleton.with_inputs({})).graph.input
    assert [[size.dim_value for size in each.type.tensor_type.shape.dim] for each in inputs] == [[2, 3, 500]] * 2


def _with_initializer(model: bytes, old: bytes, new: bytes) -> bytes:
    """`model` with one initializer replaced, byte by byte."""
    graph = onnx.load_from_string(model).graph
    parts = b""
    for tensor in graph.initializer:
        data = tensor.SerializeToString()
        data = new if data == old else data
        parts += b"\x2a" + _varint(len(data)) + data  # field 5 of the graph
    del graph.initializer[:]
    body = graph.SerializeToString() + parts
    return b"\x08\x08" + b"\x42\x04\x0a\x00\x10\x11" + b"\x3a" + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value % 128 + 128])
        value //= 128
    return encoded + bytes([value])


def test_the_need_grows_with_pixels_batches_threads_and_runs(embedded):
    model = load_model(embedded)

    def need(canvases=((288, 576),), batch_pixels=0, threads=(1,), runs=1):
        return inspect(model.graph, canvases).need(batch_pixels, threads, runs)

    plain = need()
    large = need(canvases=((2880, 5760),))
    assert 50 < (large.to_start - plain.to_start) / (plain.to_start - WEIGHTS_FACTOR * len(model.graph)) < 200
    cut = onnx_subgraph.extract(model.graph, list(PROPOSALS))
    weights = WEIGHTS_FACTOR * (len(model.graph) + len(cut))  # each thread count has sessions of its own, but one arena
    assert need(threads=(1, 2)).to_start == pytest.approx(plain.to_start + weights, abs=2)
    more_runs = need(runs=3).under_load - plain.under_load
    assert more_runs == pytest.approx(2 * (need(runs=2).under_load - plain.under_load), abs=4)
    assert need(batch_pixels=10 * 288 * 576).under_load > 2 * plain.under_load
    # canvases of both orientations count, because the pooling makes tensors that grow with the height alone
    both = need(canvases=((288, 576), (576, 288)))
    assert both.to_start == max(plain, need(canvases=((576, 288),))).to_start


MEASURE = """
import json, math, sys, threading
from pathlib import Path
from service.engine import onnx_subgraph
from service.engine.cost import Inspection
from service.engine.engine import Engine
from service.engine.fixed_sessions import pairs
from service.engine.interface import PROPOSALS
from service.engine.model import Model, load_model
from service.engine.options import EngineOptions

def status(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

canvas, threads, runs = (int(sys.argv[2]), int(sys.argv[3])), (1, 2), 2
loaded = load_model(sys.argv[1])
model = Model(loaded.card.model_copy(update={"canvases": [canvas]}), loaded.graph)
cut = onnx_subgraph.extract(model.graph, list(PROPOSALS))
pixels = int(sys.argv[4]) * math.prod(canvas)  # 0 for dynamic sessions
fixed = pairs([canvas], pixels, threads) if pixels else 0
need = Inspection(model.graph, cut, [canvas]).need(pixels, threads, runs, fixed)
before = status("VmRSS")
engine = Engine(model, threads=threads, options=EngineOptions(fixed_shapes=pixels > 0), batch_pixels=pixels)
engine.warm_up(pixels, runs)
started = status("VmHWM") - before

def loop():
    for _ in range(2):
        engine.probe()

for count in range(1, runs + 1):
    several = [threading.Thread(target=loop) for _ in range(count)]
    [each.start() for each in several]
    [each.join() for each in several]
print(json.dumps({"need": need, "measured": [started, status("VmHWM") - before]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not tell a process's peak memory")
@pytest.mark.parametrize(
    ("canvas", "fixed_batch"),
    [((576, 1152), 0), ((1600, 800), 0), ((576, 576), 2)],  # the last with sessions for 1 and 2 images
)
@pytest.mark.contract("4.6")
def test_the_estimate_is_at_least_the_measured_peak_and_at_most_twice_as_much(embedded, canvas, fixed_batch):
    command = [sys.executable, "-c", MEASURE, str(embedded), *map(str, canvas), str(fixed_batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout)
    (to_start, under_load), (started, loaded) = found["need"], found["measured"]
    assert started <= to_start <= 2 * started
    assert loaded <= under_load
    # only half of the sessions ran several times, so the peak under full load is higher than the measured one
    assert under_load <= 4 * loaded
