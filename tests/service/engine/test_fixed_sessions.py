"""Sessions with fixed shapes answer as the dynamic ones do, and hold their weights once. All on the CPU provider."""

import gc
import logging
import subprocess
import sys
import weakref
from contextlib import contextmanager
from threading import Semaphore

import numpy as np
import pytest

from service.engine import fixed_sessions
from service.engine.buffers import Buffers
from service.engine.engine import Engine
from service.engine.fixed_sessions import FixedShapesError, fixed_sizes
from service.engine.model import load_model
from service.engine.options import EngineOptions
from service.engine.rehearsal import rehearse
from service.engine.sample_canvases import busy
from service.images.fit import Canvas
from tests.service import graphs

FIXED = EngineOptions(fixed_shapes=True)
WIDE, TALL = (64, 96), (96, 64)
EIGHT = 8 * 64 * 96


def grey(level: int, height: int = 64, width: int = 96, size: tuple[int, int] = WIDE) -> Canvas:
    return Canvas(np.full((height, width, 3), level, np.uint8), size, width, height)


@pytest.fixture
def fixed(tmp_path):
    return Engine(load_model(graphs.publish(tmp_path)), options=FIXED, batch_pixels=EIGHT)


def rows_of(engine: Engine, images: int, **how) -> int:
    return engine.prepare([grey(1)] * images, **how).chosen.rows


def test_there_is_a_session_for_one_image_the_full_batch_and_a_number_in_between(fixed):
    assert fixed.fixes_shapes
    assert [rows_of(fixed, images) for images in range(1, 9)] == [1, 3, 3, 8, 8, 8, 8, 8]
    shapes = {
        tuple(fixed.prepare([grey(1)] * images, only).chosen.session.get_inputs()[0].shape)
        for images in (1, 2, 8)
        for only in (False, True)
    }
    assert shapes == {(1, 64, 96, 3), (3, 64, 96, 3), (8, 64, 96, 3)}


@pytest.mark.contract("1.2")
@pytest.mark.parametrize("images", [1, 2, 3, 5, 8, 9, 20])
@pytest.mark.parametrize("proposals_only", [False, True])
def test_a_batch_that_fills_no_session_gets_the_answers_of_each_image_alone(fixed, images, proposals_only):
    # brightness is level / 255 in this model, and the images have different sizes and so margins
    batch = [grey(10 * number + 5, 64 - number, 96 - 2 * number) for number in range(images)]
    answers = [fixed.run(batch, proposals_only)]
    if images <= 8:
        answers.append(fixed.results(fixed.execute(fixed.prepare(batch, proposals_only))))
    for results in answers:
        assert [round(float(result.objectness[0]) * 255) for result in results] == [
            10 * number + 5 for number in range(images)
        ]
        for number, result in enumerate(results):
            np.testing.assert_allclose(result.proposals[2], [0, 0, 96 - 2 * number, 64 - number], atol=0.01)


@pytest.mark.contract("1.2")
@pytest.mark.contract("2.2")
def test_the_embedded_model_answers_alike_with_fixed_and_dynamic_shapes(embedded, embedded_engine):
    canvas = (288, 432)
    made = Engine(load_model(embedded), options=FIXED, batch_pixels=2 * 288 * 432)
    assert canvas in made.geometry.canvases
    assert set(made.geometry.canvases) < set(embedded_engine.geometry.canvases)
    image = busy((288, 384)).pixels
    on_its_own, on_a_larger = Canvas(image, (288, 384), 384, 288), Canvas(image, canvas, 384, 288)
    other = busy((200, 300)).pixels
    for only in (False, True):
        (expected,) = embedded_engine.run([on_its_own], only)
        assert len(expected.proposals) > 10
        together = made.run([Canvas(other, canvas, 300, 200), on_a_larger], only)
        for found in (made.run([on_a_larger], only)[0], together[1]):
            np.testing.assert_allclose(found.proposals, expected.proposals, atol=0.01)
            np.testing.assert_allclose(found.objectness, expected.objectness, atol=1e-4)
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
            assert found.labels.tolist() == expected.labels.tolist()


def test_the_same_memory_is_filled_for_every_batch(fixed):
    first = fixed.prepare([grey(200)] * 3)
    assert first.buffer is not None
    address = first.buffer.ctypes.data
    fixed.execute(first)
    with pytest.raises(ValueError, match="run before"):
        fixed.execute(first)  # by now its memory may hold the images of others
    second = fixed.prepare([grey(100, 32, 48)] * 2)
    assert second.images is not None
    assert second.images.ctypes.data == address
    assert second.images.sum() == 2 * 100 * 3 * 32 * 48  # nothing is left of 200
    assert second.sizes.tolist() == [[32, 48], [32, 48], [1, 1]]


def test_a_batch_beyond_the_largest_session_is_run_in_parts_none_larger_than_itself(fixed, monkeypatch):
    rows = []
    execute = fixed.execute
    monkeypatch.setattr(fixed, "execute", lambda batch: rows.append(batch.chosen.rows) or execute(batch))
    for images in (20, 7, 2):
        rows.clear()
        assert len(fixed.run([grey(1)] * images)) == images
        assert rows == {20: [8, 8, 3, 1], 7: [3, 3, 1], 2: [1, 1]}[images]


@pytest.fixture
def timed(monkeypatch):
    """Invented seconds of a run, by rung, in place of measured ones."""
    times = {1: 2.0, 3: 2.5, 8: 9.0}
    monkeypatch.setattr(fixed_sessions.FixedSessions, "_time", lambda self, canvas, rung, *_: times[rung])
    return times


def test_a_run_takes_the_number_of_images_that_the_warm_up_found_fastest(fixed, timed, caplog):
    caplog.set_level(logging.INFO)
    fixed.warm_up(EIGHT)
    assert [fixed.images_to_take(WIDE, ready, 8) for ready in (1, 2, 3, 8, 50)] == [1, 2, 3, 3, 3]  # 0.83 s an image
    assert "plain/1: images per run on 64 x 96: 1 in 2000.0 ms, 3 in 2500.0 ms, 8 in 9000.0 ms" in caplog.text
    timed.update({8: 4.0})
    fixed.warm_up(EIGHT)
    assert [fixed.images_to_take(WIDE, ready, 8) for ready in (3, 4, 8)] == [3, 3, 8]
    assert fixed.images_to_take(WIDE, 8, 7) == 3  # 8 rows are more than is allowed
    assert fixed.images_to_take((64, 64), 5, 4) == 4  # not one of its canvases, so the dynamic sessions run it


def test_a_rung_that_does_not_pay_is_closed(fixed, timed):
    timed.update({1: 1.0, 3: 2.6, 8: 9.0})  # three one by one take 3 s, so 2.6 s is no gain of a fifth
    fixed.warm_up(EIGHT)
    assert [rows_of(fixed, images) for images in (1, 2, 3)] == [1, 8, 8]


def test_a_rung_that_fails_is_closed_with_a_warning_and_its_batches_run_in_parts(fixed, monkeypatch, caplog):
    time = fixed_sessions.FixedSessions._time  # noqa: SLF001

    def runs_out(self, canvas, rung, *how):
        if rung == 8:
            raise RuntimeError("BFCArena: out of memory")
        return time(self, canvas, rung, *how)

    monkeypatch.setattr(fixed_sessions.FixedSessions, "_time", runs_out)
    fixed.warm_up(EIGHT)
    assert "a batch of 8 images on 64 x 96 fails; lower BATCH_PIXELS" in caplog.text
    assert fixed.images_to_take(WIDE, 8, 8) <= 3
    assert len(fixed.run([grey(1)] * 8)) == 8


@pytest.mark.contract("5.7")
def test_the_warm_up_runs_every_session_twice_or_more_and_only_in_its_turn(tmp_path, monkeypatch):
    runs: dict[int, int] = {}
    held = False

    class Counted:
        def __init__(self, session):
            self.session = session

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run(self, *values):
            assert held
            runs[id(self)] = runs.get(id(self), 0) + 1
            return self.session.run(*values)

    @contextmanager
    def turn():
        nonlocal held
        held = True
        yield
        held = False

    class Turn:
        def __enter__(self):
            self.inner = turn()
            return self.inner.__enter__()

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    made = Engine(load_model(graphs.publish(tmp_path)), threads=(1, 2), options=FIXED, batch_pixels=EIGHT)
    sessions = made._fixed._sessions  # noqa: SLF001  there is no public way to a session that is not chosen
    for key, by_threads in sessions.items():
        sessions[key] = {count: Counted(session) for count, session in by_threads.items()}
    made._fixed.warm_up(Buffers(pins=False), Turn())  # noqa: SLF001
    # two canvases; full and proposals; with one or two threads for one image, with one thread for 3 and for 8
    assert len(runs) == 2 * 2 * (2 + 1 + 1)
    assert min(runs.values()) >= 2


def test_one_image_may_use_more_threads_and_a_batch_one(tmp_path):
    made = Engine(load_model(graphs.publish(tmp_path)), threads=(1, 2), options=FIXED, batch_pixels=EIGHT)
    threads = [
        made.prepare([grey(1)] * images, threads=2).chosen.session.get_session_options().intra_op_num_threads
        for images in (1, 3, 8)
    ]
    assert threads == [2, 1, 1]


@pytest.mark.parametrize(
    ("images", "sizes", "fault"),
    [
        (["N", None, "W", 3], ["N", 2], "dimensions without names"),
        (["N", "H", "W", 3], [1, 2], "dimensions of a fixed size"),
        (["N", "side", "side", 3], ["N", 2], "two different dimensions of its inputs have the name side"),
        (["N", "H", "W", 3], ["H", 2], "the name H"),
    ],
)
def test_dimensions_that_cannot_be_told_apart_are_named(images, sizes, fault):
    with pytest.raises(FixedShapesError, match=fault):
        fixed_sizes({"images": images, "sizes": sizes}, WIDE, 3)


def test_dimensions_are_fixed_by_their_names():
    inputs = {"images": ["batch", "height", "width", 3], "sizes": ["n", 2]}
    assert fixed_sizes(inputs, WIDE, 3) == {"batch": 3, "height": 64, "width": 96, "n": 3}


def test_the_rehearsal_compares_an_image_alone_with_one_in_a_session_for_several(fixed, monkeypatch):
    rows = []
    execute = fixed.execute
    monkeypatch.setattr(fixed, "execute", lambda batch: rows.append(batch.chosen.rows) or execute(batch))
    turn = Semaphore(1)
    rehearse(fixed, EIGHT, turn)
    assert rows == [1, 3]


def test_each_run_of_the_rehearsal_holds_the_turn_of_the_device_and_gives_it_back(fixed, monkeypatch):
    turn = Semaphore(1)
    free = []
    execute = fixed.execute
    monkeypatch.setattr(fixed, "execute", lambda batch: free.append(turn.acquire(blocking=False)) or execute(batch))
    rehearse(fixed, EIGHT, turn)
    assert free == [False, False]
    assert turn.acquire(blocking=False)


# A table of 16 MB that ONNX Runtime uses as it is in the file: sessions that do not share it hold 12 copies.
MEASURED = """
import sys
import weakref
import numpy as np, psutil
from onnx import helper, numpy_helper
from service.engine import memory_limit, sessions
from service.engine.buffers import Buffers
from service.engine.engine import Engine
from service.engine.model import load_model
from service.engine.options import EngineOptions
from tests.service import graphs
from pathlib import Path

shares, folder = sys.argv[1] == "shared", Path(sys.argv[2])
MB = 10**6
make = graphs.graph

def with_table(**kind):
    model = make(**kind)
    graph = model.graph
    table = np.arange(4 * MB, dtype=np.float32).reshape(-1, 4) + 1
    graph.initializer.append(numpy_helper.from_array(table, "table"))
    added = [
        helper.make_node("Mod", ["sizes", "sizes"], ["zero"]),  # known only in a run, so nothing is computed in advance
        helper.make_node("Gather", ["table", "zero"], ["row"], axis=0),
        helper.make_node("ReduceMax", ["row"], ["top"], keepdims=0),
        helper.make_node("Mul", ["top", "none"], ["nothing"]),
        helper.make_node("Add", ["objectness_alone", "nothing"], ["objectness"]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "none"))
    at = next(i for i, node in enumerate(graph.node) if node.output[0] == "objectness")
    graph.node[at].output[0] = "objectness_alone"
    before = next(i for i, node in enumerate(graph.node) if node.output[0] == "n")
    for node in reversed(added):
        graph.node.insert(before + 1, node)
    return model

graphs.graph = with_table
model = load_model(graphs.publish(folder))
if not shares:
    sessions.Weights.give_to = lambda self, options, names: options.add_external_initializers(
        names, [self._read[name] for name in names]
    )
memory_limit.return_freed_memory()  # as the service does
process = psutil.Process()
before = process.memory_info().rss
engine = Engine(model, options=EngineOptions(fixed_shapes=True), batch_pixels=8 * 64 * 96)
engine.warm_up(8 * 64 * 96)
print((process.memory_info().rss - before) // MB)
"""


def test_all_sessions_hold_the_weights_once(tmp_path):
    grown = {}
    for kind in ("shared", "apart"):
        command = [sys.executable, "-c", MEASURED, kind, str(tmp_path / kind)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[kind] = int(done.stdout)
    # 2 canvases, 2 or 3 rungs and the dynamic sessions, each in full and for proposals alone: at least 10 sessions
    assert grown["shared"] < 3 * 16  # the one copy, and the sessions themselves
    assert grown["apart"] > 8 * 16  # what the measurement shows if the weights are not shared


def test_the_memory_of_a_version_that_is_no_longer_served_is_freed_at_once(tmp_path):
    """Without a garbage collection, because a GPU's memory may be needed for the next version before there is one."""
    gc.disable()
    try:
        made = Engine(load_model(graphs.publish(tmp_path, work=1)), options=FIXED, batch_pixels=EIGHT)
        made.warm_up(EIGHT)
        parts = [weakref.ref(part) for part in (made, made.prepare([grey(1)] * 3).chosen.session)]
        del made
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()
