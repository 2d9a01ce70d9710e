"""The checks of a version before it is served: a service that it would harm refuses it instead."""

import json
import shutil

import pytest

from service.engine import model as model_module
from service.engine import onnx_subgraph
from service.engine.cost import Inspection
from service.engine.devices import find
from service.engine.engine import Engine
from service.engine.fixed_sessions import FixedSessions
from service.engine.interface import PROPOSALS
from service.engine.model import ModelIncompleteError, ModelRefusedError, load_model
from service.engine.options import EngineOptions
from service.engine.providers import CPU, CUDA
from service.models.opening import NotEnoughMemoryError, Opener, may_pass, shortage
from tests.service import graphs

GB = 10**9


FIXED = EngineOptions(fixed_shapes=True)


def opened(folder, left: int | None = 4 * GB, options: EngineOptions | None = None):
    return Opener(find(CPU, None, 1, None, 1), options or EngineOptions(), lambda: left).open(folder, lambda *_: None)


def changed(embedded, store, **card):
    """A copy of the embedded model with another card."""
    folder = store / "shapes" / "1"
    shutil.copytree(embedded, folder)
    document = json.loads((embedded / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(document | card))
    return folder


@pytest.mark.parametrize("labels", [["one"], ["a", "b", "c", "d", "e"], list("abcdefg")])
@pytest.mark.contract("4.6")
def test_a_card_that_lists_another_number_of_classes_than_the_graph_is_refused(embedded, tmp_path, labels):
    with pytest.raises(ModelRefusedError, match=f"distinguishes 6 classes.*lists {len(labels)} labels"):
        opened(changed(embedded, tmp_path, labels=labels))


@pytest.mark.contract("4.6")
def test_a_label_that_the_card_does_not_list_is_found_before_the_version_is_served(tmp_path):
    # the classes of this graph cannot be counted, but its first run has labels 0 and 1
    with pytest.raises(ModelRefusedError, match="labels has indices from 0 to 1, but the card lists 1 labels"):
        opened(graphs.publish(tmp_path, card={"labels": ["only"]}))


@pytest.mark.contract("4.6")
def test_a_version_that_needs_more_memory_than_is_left_is_refused_with_both_figures(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("it ran"))
    folder = changed(embedded, tmp_path, canvases=[[5599, 5599]], resize={"min_size": 5599, "max_size": 5599})
    with pytest.raises(NotEnoughMemoryError, match=r"needs about \d{4} MB of memory .* 2000 MB are left"):
        opened(folder, left=2 * GB)


def test_a_graph_that_alone_exceeds_the_memory_is_not_read(tmp_path):
    folder = graphs.publish(tmp_path)
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(10**12)  # a sparse file
    with pytest.raises(NotEnoughMemoryError, match=r"model\.onnx alone needs about 2000000 MB"):
        opened(folder)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The CPU provider gets the graphs that are named for CUDA."""
    for precision in ("strict", "tf32", "fp16"):
        monkeypatch.setitem(model_module.SUITABLE, (CPU, precision), model_module.SUITABLE[CUDA, precision])


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.contract("4.8")
def test_another_graph_is_checked_before_it_is_served(embedded, tmp_path):
    folder = changed(embedded, tmp_path)
    graphs.add_graph(folder, (embedded / "model.onnx").read_bytes())
    opened(folder)
    graphs.add_graph(folder, graphs.graph().SerializeToString())  # has labels 0 and 1, in no number that shows
    opened(folder)
    (folder / "model.cuda.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelIncompleteError, match=r"model\.cuda\.onnx has 8 bytes"):
        opened(folder)


@pytest.mark.usefixtures("as_on_cuda")
def test_another_graph_that_exceeds_the_memory_is_not_read(tmp_path):
    folder = graphs.publish(tmp_path)
    file = graphs.add_graph(folder, b"graph", bytes=10**12)
    with file.open("r+b") as opened_file:
        opened_file.truncate(10**12)  # a sparse file
    with pytest.raises(NotEnoughMemoryError, match=r"model\.cuda\.onnx alone needs about 20000"):
        opened(folder)
    file.write_bytes(b"graph")  # the card alone claims that it is large
    with pytest.raises(ModelIncompleteError, match=r"has 5 bytes, model\.json says 1000000000000"):
        opened(folder)


def test_nothing_is_refused_for_its_cost_if_the_memory_is_unknown(tmp_path):
    assert opened(graphs.publish(tmp_path), left=None).card.name == "plain"


@pytest.mark.contract("4.6")
def test_a_graph_that_fails_on_a_canvas_is_refused(tmp_path, monkeypatch):
    execute = Engine.execute

    def fails_on_odd_sides(self, prepared):
        if prepared.canvases[0].size[1] % 32:
            raise RuntimeError("shapes do not match")
        return execute(self, prepared)

    monkeypatch.setattr(Engine, "execute", fails_on_odd_sides)
    opened(graphs.publish(tmp_path, version=1))
    folder = graphs.publish(tmp_path, version=2, card={"canvases": [[64, 96], [96, 64], [64, 80]]})
    with pytest.raises(ModelRefusedError, match="fails when it runs on one of its canvases"):
        opened(folder)


@pytest.mark.contract("4.6")
def test_a_graph_whose_images_affect_each_other_is_refused(tmp_path, monkeypatch):
    model = graphs.graph()
    mean = next(node for node in model.graph.node if node.output[0] == "mean")
    mean.output[0] = "mean_of_each"
    model.graph.node.insert(
        [*model.graph.node].index(mean) + 1, graphs.helper.make_node("ReduceMean", ["mean_of_each"], ["mean_of_all"])
    )
    position = [node.output[0] for node in model.graph.node].index("mean_of_all") + 1
    model.graph.node.insert(position, graphs.helper.make_node("Expand", ["mean_of_all", "batch"], ["mean"]))
    model.graph.node.insert(0, graphs.helper.make_node("Shape", ["area"], ["batch"]))
    area = next(node for node in model.graph.node if node.output[0] == "area")
    model.graph.node.remove(area)
    model.graph.node.insert(1, area)
    _in_order(model)
    monkeypatch.setattr(graphs, "graph", lambda: model)
    with pytest.raises(ModelRefusedError, match=r"for an image alone, and with .* in a batch of two"):
        opened(graphs.publish(tmp_path))


def _in_order(model):
    """Sorts the nodes so that each comes after those whose outputs it reads."""
    known = {each.name for each in [*model.graph.input, *model.graph.initializer]}
    waiting, done = [*model.graph.node], []
    while waiting:
        node = next(node for node in waiting if known.issuperset(node.input))
        waiting.remove(node)
        done.append(node)
        known.update(node.output)
    del model.graph.node[:]
    model.graph.node.extend(done)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("Load model from /proc/self/fd/18 failed:system error number 24"), "too many open files"),
        (OSError(5, "Input/output error"), "input/output error"),
    ],
)
def test_a_shortage_is_recognised_behind_the_error_that_it_caused(error, word):
    refusal = ModelRefusedError("model.onnx: ONNX Runtime cannot load it")
    assert not may_pass(refusal)
    refusal.__cause__ = error
    assert may_pass(refusal)
    assert shortage(refusal) == word


def test_a_version_is_served_with_fixed_shapes_if_the_settings_ask_for_it(tmp_path):
    declared = [[64, 96], [96, 64], [64, 64], [64, 68], [68, 64], [64, 80], [80, 64]]
    folder = graphs.publish(tmp_path, card={"canvases": declared})
    served = opened(folder, options=FIXED)
    assert (served.shapes, served.shapes_fault) == ("fixed", None)
    assert len(served.geometry.canvases) < len(declared)  # images are decoded for these
    assert opened(folder).shapes == "dynamic"
    assert len(opened(folder).geometry.canvases) == len(declared)


def test_a_version_whose_dimensions_have_no_names_is_served_by_dynamic_sessions_and_says_so(
    tmp_path, monkeypatch, caplog
):
    model = graphs.graph()
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dimension.ClearField("dim_param")
    monkeypatch.setattr(graphs, "graph", lambda: model)
    served = opened(graphs.publish(tmp_path), options=FIXED)
    assert served.shapes == "dynamic"
    fault = "cpu:0: its inputs have dimensions without names; export it again"
    assert served.shapes_fault == fault
    assert (
        "model plain/1 is served without FIXED_SHAPES on cpu:0: its inputs have dimensions without names" in caplog.text
    )


@pytest.mark.parametrize(
    "message",
    [
        "BFCArena: Available memory of 10 is smaller than requested bytes of 20",
        "CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED",  # which cuDNN says if it has no memory for a plan
    ],
)
def test_a_version_whose_many_sessions_do_not_fit_is_served_by_dynamic_sessions_and_says_so(
    tmp_path, monkeypatch, message
):
    def runs_out(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(FixedSessions, "warm_up", runs_out)
    served = opened(graphs.publish(tmp_path), options=FIXED)
    assert served.shapes == "dynamic"
    assert "its sessions do not fit into the memory; lower BATCH_PIXELS or raise GPU_MEMORY" in served.shapes_fault


def test_another_failure_of_the_first_runs_is_not_hidden_by_a_second_attempt(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(FixedSessions, "warm_up", fails)
    with pytest.raises(ModelRefusedError, match="fails when it runs on one of its canvases"):
        opened(graphs.publish(tmp_path), options=FIXED)


@pytest.mark.contract("4.6")
def test_the_memory_of_all_sessions_with_fixed_shapes_is_estimated_before_they_are_opened(tmp_path):
    folder = graphs.publish(tmp_path, work=1)  # its weights are a matrix of 600 x 600 floats, 1.44 MB
    (device,) = find(CPU, None, 1, None, 1)
    model = load_model(folder)
    seen = Inspection(model.graph, onnx_subgraph.extract(model.graph, list(PROPOSALS)), model.card.canvases)
    pixels = device.budget.pixels
    assert pixels // (64 * 96) == 40  # so for each of the two canvases there are sessions for 1, 6 and 40 images
    two, fourteen = (seen.need(pixels, (1,), 1, fixed).to_start for fixed in (0, 2 * 3))
    assert fourteen - two == pytest.approx(6 * 1.85 * 1.44e6, rel=0.01)  # WEIGHTS_FACTOR
    left = (two + fourteen) // 2
    served = opened(folder, left, FIXED)
    assert served.shapes == "dynamic"
    expected = f"its 12 sessions need about {fourteen // 10**6} MB of memory, and {left // 10**6} MB are left"
    assert served.shapes_fault == f"cpu:0: {expected}"
    assert opened(folder, fourteen + 10**6, FIXED).shapes == "fixed"
