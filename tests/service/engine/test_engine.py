import hashlib
import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from service.engine import sessions
from service.engine.engine import Engine, WrongOutputError
from service.engine.model import ModelRefusedError, load_model
from service.engine.options import EngineOptions
from service.engine.providers import CPU, CUDA, open_session
from service.images.decode import decode
from service.images.fit import Canvas
from tests.service import graphs


def grey(level: int, height: int = 64, width: int = 96, size: tuple[int, int] = (64, 96)) -> Canvas:
    return Canvas(np.full((height, width, 3), level, np.uint8), size, 2 * width, 2 * height)


def test_boxes_are_in_pixels_of_the_original_image(plain):
    (result,) = plain().run([grey(102, height=40)])  # the original is 192 x 80, and the brightness is 102 / 255 = 0.4
    np.testing.assert_allclose(result.boxes, [[0, 0, 96, 40], [48, 20, 192, 80]])
    np.testing.assert_allclose(result.scores, [0.4, 0.2], rtol=1e-5)
    assert result.labels.tolist() == [0, 1]
    np.testing.assert_allclose(result.proposals[2], [0, 0, 192, 80])
    np.testing.assert_allclose(result.objectness, [0.4, 0.2, 0.1], rtol=1e-5)


@pytest.mark.contract("1.6")
def test_a_result_says_what_the_limits_of_the_graph_may_have_left_out(plain, embedded_engine):
    # The simple graph always returns as many boxes as it can: 2 detections, the second with score 0.2, and 3 proposals.
    (full,) = plain().run([grey(102)])
    assert full.left_out == full.scores[1]
    assert not full.all_proposals
    # The embedded model finds nothing in a grey image.
    (empty,) = embedded_engine.run([Canvas(np.full((288, 288, 3), 127, np.uint8), (288, 288), 288, 288)])
    assert len(empty.scores) < 100
    assert empty.left_out == 0
    # A graph that knows better than its number of detections tells so itself.
    for told in (0.0, 0.25):
        (result,) = plain(left_out=told).run([grey(102)])
        assert result.left_out == np.float32(told)
    with pytest.raises(WrongOutputError, match=r"output left_out is 1\.5, but it must be between 0 and 1"):
        plain(left_out=1.5).run([grey(102)])


@pytest.mark.contract("1.4")
def test_a_run_for_proposals_only_returns_the_proposals_of_the_whole_graph(plain):
    made = plain(work=1)
    (whole,), (alone,) = made.run([grey(50)]), made.run([grey(50)], proposals_only=True)
    np.testing.assert_array_equal(whole.proposals, alone.proposals)
    np.testing.assert_array_equal(whole.objectness, alone.objectness)
    assert (len(alone.boxes), len(alone.scores), len(alone.labels)) == (0, 0, 0)


@pytest.mark.contract("1.2")
def test_the_embedded_model_gives_the_same_results_in_a_batch_as_alone(embedded_engine):
    geometry = embedded_engine.geometry
    rng = np.random.default_rng(5)
    canvases = [decode(_noisy(rng, *size), geometry) for size in ((640, 480), (600, 450), (500, 380), (640, 481))]
    canvases = [canvas for canvas in canvases if canvas.size == canvases[0].size]
    assert len(canvases) > 1
    for proposals_only in (False, True):
        together = embedded_engine.run(canvases, proposals_only)
        for canvas, among_others in zip(canvases, together, strict=True):
            (alone,) = embedded_engine.run([canvas], proposals_only)
            np.testing.assert_allclose(among_others.proposals, alone.proposals, atol=0.01)
            np.testing.assert_allclose(among_others.objectness, alone.objectness, atol=1e-4)
            np.testing.assert_allclose(among_others.boxes, alone.boxes, atol=0.01)
            assert among_others.labels.tolist() == alone.labels.tolist()


def _noisy(rng: np.random.Generator, width: int, height: int) -> bytes:
    blocks = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    blocks.resize((width, height), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def test_a_batch_with_different_canvases_is_refused(plain):
    with pytest.raises(ValueError, match="in one batch"):
        plain().run([grey(1), grey(1, 96, 64, (96, 64))])


@pytest.mark.parametrize("provider", [CPU, CUDA])
def test_warm_up_runs_the_largest_canvas_on_a_cpu_and_every_canvas_on_cuda(plain, monkeypatch, provider):
    warmed = plain()
    ran = []
    monkeypatch.setattr(warmed, "run", lambda canvases, only=False, threads=1: ran.append((canvases[0].size, only)))
    monkeypatch.setattr(warmed, "provider", provider)
    warmed.warm_up()
    every = warmed.geometry.canvases
    assert len(every) > 1
    warm = every if provider == CUDA else [max(every, key=math.prod)]
    expected = [(canvas, only) for canvas in warm for only in (False, True)]
    if provider == CPU:
        expected.append((warm[0], False))  # the run that determines the memory under load
    assert sorted(ran) == sorted(expected)


def test_warm_up_ends_with_the_largest_batches_at_the_same_time(plain, monkeypatch):
    warmed = plain()
    together, sizes = threading.Barrier(3), []

    def run(canvases, only=False, threads=1):
        if len(canvases) > 1:
            sizes.append(len(canvases))
            together.wait(60)  # passes only if three runs are in progress

    monkeypatch.setattr(warmed, "run", run)
    warmed.warm_up(2 * 64 * 96, at_once=3)
    assert sizes == [2, 2, 2]


def test_a_probe_runs_the_engine_once(plain, monkeypatch):
    probed = plain()
    probed.warm_up()
    ran = []
    run = probed.run
    monkeypatch.setattr(probed, "run", lambda canvases: ran.append(canvases) or run(canvases))
    probed.probe()
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("rename", "reason"),
    [({"boxes": "bboxes"}, "output boxes is missing"), ({"labels": "scores2"}, "output labels is missing")],
)
def test_a_graph_with_other_outputs_is_refused(tmp_path, rename, reason):
    with pytest.raises(ModelRefusedError, match=reason):
        Engine(load_model(graphs.publish(tmp_path, rename=rename)))


@pytest.mark.contract("1.1")
def test_a_graph_with_a_fixed_input_size_is_refused(tmp_path, monkeypatch):
    model = graphs.graph()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    monkeypatch.setattr(graphs, "graph", lambda: model)
    with pytest.raises(ModelRefusedError, match="must be symbolic"):
        Engine(load_model(graphs.publish(tmp_path)))


def test_a_file_that_is_not_a_model_is_refused(tmp_path, monkeypatch):
    class Rubbish:
        def SerializeToString(self) -> bytes:  # noqa: N802  protobuf's name
            return b"\x08\x08rubbish"

    monkeypatch.setattr(graphs, "graph", Rubbish)
    with pytest.raises(ModelRefusedError, match=r"model\.onnx"):
        Engine(load_model(graphs.publish(tmp_path)))


def test_a_fault_of_another_graph_than_model_onnx_names_its_file(tmp_path, monkeypatch):
    other = graphs.graph()
    del other.graph.output[:]
    graph = other.SerializeToString()
    entry = {"file": "model.cuda.onnx", "sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    folder = graphs.publish(tmp_path, card={"graphs": {"cuda": entry}})
    (folder / "model.cuda.onnx").write_bytes(graph)
    monkeypatch.setattr("service.engine.model.SUITABLE", {(CPU, "strict"): ("cuda",)})
    with pytest.raises(ModelRefusedError, match=r"^model\.cuda\.onnx: "):
        Engine(load_model(folder))


def test_a_graph_exported_for_the_cpu_runs_on_the_cpu_even_if_there_is_a_gpu(tmp_path, caplog):
    model = load_model(graphs.publish(tmp_path, card={"provider": "cpu"}))
    made = Engine(model, CUDA)
    assert made.provider == CPU
    assert "plain/1 was exported for the CPU" in caplog.text
    assert made.run([grey(51)])[0].scores[0] == pytest.approx(0.2)


def test_a_run_uses_the_session_with_the_most_threads_within_its_bound(tmp_path, monkeypatch):
    used = []

    class Recorded:
        """A session that records its number of threads for each run."""

        def __init__(self, graph, provider, options, *how):
            self.threads = options.intra_op_num_threads
            self.session = open_session(graph, provider, options, *how)

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run(self, *values):
            used.append(self.threads)
            return self.session.run(*values)

    monkeypatch.setattr(sessions, "open_session", Recorded)
    made = Engine(load_model(graphs.publish(tmp_path)), threads=(2, 4, 8))
    for threads in (1, 2, 3, 4, 7, 64):
        (result,) = made.run([grey(51)], threads=threads)
        assert result.scores[0] == pytest.approx(0.2)  # 51 / 255
    assert used == [2, 2, 2, 4, 4, 8]


def test_a_graph_is_loaded_from_the_bytes_that_were_checked(tmp_path):
    folder = graphs.publish(tmp_path)
    model = load_model(folder)
    (folder / "model.onnx").write_bytes(b"changed since")
    assert Engine(model).run([grey(51)])[0].scores[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("output", "value", "message"),
    [
        ("labels", np.array([[0, 2]]), "labels has indices from 0 to 2, but the card lists 2 labels"),
        ("labels", np.array([[-1, 0]]), "labels has indices from -1 to 0"),
        ("num_detections", np.array([3]), "num_detections is 3, but output boxes has 2 rows"),
        ("num_proposals", np.array([-1]), "num_proposals is -1"),
        ("scores", np.array([[0.5, np.nan]], np.float32), "scores has values that are not finite"),
        ("boxes", np.full((1, 2, 4), np.nan, np.float32), "boxes has values that are not finite"),
        ("objectness", np.full((1, 3), np.inf, np.float32), "objectness has values that are not finite"),
        ("scores", np.zeros((2, 2), np.float32), "scores has shape (2, 2) for a batch of 1"),
    ],
)
@pytest.mark.contract("4.6")
def test_values_that_would_make_an_answer_wrong_are_an_error_of_the_engine(
    tmp_path, monkeypatch, output, value, message
):
    class Changed:
        """A session that returns another value for one output."""

        def __init__(self, *how):
            self.session = open_session(*how)

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run(self, names, feeds):
            found = dict(zip(names, self.session.run(names, feeds), strict=True))
            return [value if name == output else found[name] for name in names]

    monkeypatch.setattr(sessions, "open_session", Changed)
    made = Engine(load_model(graphs.publish(tmp_path)))
    with pytest.raises(WrongOutputError) as raised:
        made.run([grey(51)])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("precision", "of_the_graph", "tf32"),
    [
        ("strict", "fp32", False),
        ("tf32", "fp32", True),
        ("fp16", "fp32", True),  # a version without a float16 graph
        ("strict", "fp16", True),  # cuDNN would leave the tensor cores idle
        ("fp16", "fp16", True),
    ],
)
@pytest.mark.contract("5.8")
def test_factors_are_rounded_only_if_the_setting_or_the_graph_asks_for_it(
    tmp_path, monkeypatch, precision, of_the_graph, tf32
):
    opened = []

    def recorded(graph, provider, options, *how):
        opened.append(how)
        return open_session(graph, provider, options)

    monkeypatch.setattr(sessions, "open_session", recorded)
    model = load_model(graphs.publish(tmp_path, card={"precision": of_the_graph}))
    Engine(model, options=EngineOptions(precision), device=3)
    assert opened == [(tf32, 3)] * 2


def test_a_batch_is_prepared_run_and_read_in_three_steps_that_any_thread_may_do(plain):
    made = plain()
    batches = [[grey(51 * number)] * number for number in (1, 2, 3)]
    with ThreadPoolExecutor(3) as pool:
        prepared = list(pool.map(made.prepare, batches))
        executed = [made.execute(each) for each in prepared]
        found = list(pool.map(made.results, executed))
    # 51 / 255 = 0.2
    assert [[round(float(result.scores[0]), 3) for result in results] for results in found] == [
        [0.2], [0.4] * 2, [0.6] * 3
    ]  # fmt: skip


def test_an_engine_with_dynamic_sessions_takes_all_that_is_ready_and_allowed(plain):
    made = plain()
    assert made.images_to_take((64, 96), 5, 9) == 5
    assert made.images_to_take((64, 96), 9, 5) == 5
    assert not made.prefers_same_shape  # on a CPU a change of shape costs nothing
