"""Resizing on an engine's device, compared with the resize of `decode`: on ONNX Runtime's CPU provider, and a GPU."""

import ctypes
import io
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnxruntime import OrtValue
from PIL import Image

from service.engine import cuda_runtime, resize
from service.engine.engine import Engine
from service.engine.model import load_model
from service.engine.options import EngineOptions
from service.engine.providers import CPU, CUDA, pick_provider
from service.engine.rehearsal import rehearse
from service.engine.resize import NEAR, Resizer
from service.images.decode import ORIENTATION, decode
from service.images.fit import Canvas, Geometry, Resize
from service.images.pending import finished
from service.images.upright import TRANSPOSE, vertical_first
from tests.service import graphs

SIZE = (64, 96)
FORCED = EngineOptions(resize=True)


@pytest.fixture(scope="module", params=[CPU, CUDA])
def resizer(request) -> Resizer:
    if request.param == CUDA and pick_provider() != CUDA:
        pytest.skip("there is no GPU that passes the check at start")
    return Resizer(request.param, 0)


def noise(height: int, width: int) -> np.ndarray:
    """Random pixels. Neighbours differ so much that every misplaced sample is noticed."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def waiting(height: int, width: int, to: tuple[int, int], antialias: bool = True, cut: float = 0.0) -> Canvas:
    """An image that must be resized to `to`. cut: what the box leaves out at the right, or if negative, at the left."""
    box = (max(0.0, -cut), 0.0, width - max(0.0, cut), float(height))
    return Canvas(noise(height, width), SIZE, width, height, pending=Resize(*to, box, antialias))


def placed(canvas: Canvas) -> np.ndarray:
    """What the canvas must hold: the image as `decode` resizes it, and zeros."""
    expected = np.zeros((*canvas.size, 3), np.uint8)
    h, w = canvas.image_size
    expected[:h, :w] = finished(canvas).pixels
    return expected


def difference(actual: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(actual.astype(int) - expected.astype(int)).max())


@pytest.mark.contract("2.5")
@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, SIZE[0]), st.integers(1, SIZE[1]), st.booleans(),
    st.floats(-0.99, 0.99),
)  # fmt: skip
@example(1, 1, 64, 96, True, 0.0)
@example(300, 300, 1, 1, True, 0.0)
@example(64, 96, 64, 96, False, 0.0)
@settings(max_examples=300, deadline=None)
def test_every_pixel_is_what_the_cpu_gives_and_without_antialiasing_within_one_level(
    resizer, height, width, h, w, antialias, cut
):
    if antialias and vertical_first((width, height), (w, h)):
        return  # such an image is resized on the CPU
    canvas = waiting(height, width, (h, w), antialias, cut if antialias and width > 1 else 0.0)
    assert difference(resizer.batch([canvas], 1).numpy()[0], placed(canvas)) <= (0 if antialias else NEAR)


@pytest.mark.contract("2.5")
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, *TRANSPOSE]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_file_has_the_pixels_that_decoding_alone_gives(resizer, width, height, orientation, antialias):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    out = io.BytesIO()
    Image.fromarray(noise(height, width)).save(out, "JPEG", exif=exif)
    now, later = (
        decode(out.getvalue(), Geometry((SIZE, SIZE[::-1], (96, 96)), 60, 90, antialias, resize_later=when))
        for when in (False, True)
    )
    assert difference(resizer.batch([later], 1).numpy()[0], placed(now)) <= (0 if antialias else NEAR)


def test_nearly_all_levels_are_equal_without_antialiasing(resizer):
    """Only sums near a half may be rounded otherwise. A shift by a hundredth of a pixel would change most of them."""
    canvas = waiting(233, 177, (60, 90), antialias=False)
    assert (resizer.batch([canvas], 1).numpy()[0] != placed(canvas)).mean() < 0.001


def test_halves_are_rounded_as_pillow_does_in_both_passes(resizer):
    """With 8 to 60 pixels, the weights are multiples of 1 / 15 and many sums lie halfway between two levels.

    Equal rows are all rounded the same way, so an error of the first pass is not averaged out by the second.
    """
    for level in range(0, 256, 5):
        pixels = np.tile(np.array([0, 255, level, 7, 128, level, 64, 33], np.uint8)[:, np.newaxis], (8, 1, 3))
        canvas = Canvas(pixels, SIZE, 8, 8, pending=Resize(60, 60, (0, 0, 8, 8), True))
        np.testing.assert_array_equal(resizer.batch([canvas], 1).numpy()[0], placed(canvas))


def test_a_batch_may_mix_sizes_filters_and_images_that_are_resized_already(resizer):
    batch = [
        waiting(30, 40, (60, 80)),
        Canvas(noise(50, 96), SIZE, 200, 100),
        waiting(200, 150, (64, 48), antialias=False),
        waiting(120, 160, (60, 80), cut=0.5),
    ]
    images = resizer.batch(batch, 6).numpy()
    assert images.shape == (6, *SIZE, 3)
    for image, canvas in zip(images, batch, strict=False):
        assert difference(image, placed(canvas)) <= NEAR
    np.testing.assert_array_equal(images[1], placed(batch[1]))  # only copied
    assert not images[4:].any()  # rows without an image


def test_images_on_different_canvases_are_refused(resizer):
    with pytest.raises(ValueError, match=r"canvases \(96, 64\) and \(64, 96\) in one batch"):
        resizer.batch([waiting(30, 40, (60, 80)), replace(waiting(40, 30, (80, 60)), size=(96, 64))], 2)


def test_the_weights_of_every_pixel_add_up_to_one():
    for size, new, start, end in ((100, 37, 0, 99.5), (37, 96, 0, 37), (2000, 96, 0.25, 2000), (1, 96, 0, 1)):
        for antialias in (True, False):
            places, weights = resize.taps(size, new, start, end, antialias, 96)
            high, low = weights[:, :96], weights[:, 96:]
            # each weight is rounded to 2 ** -22, so the sum of T of them is off by up to T / 2 of that
            np.testing.assert_allclose((high + low).sum(axis=0)[:new], 1, rtol=0, atol=len(weights) * 2**-23)
            assert not (high + low)[:, new:].any()
            assert low.max() < 2**-11
            assert not (high % 2**-11).any()
            assert 0 <= places.min() <= places.max() < size
            assert all(len(set(column)) == len(column) for column in places.T.tolist())


# --- in an engine ----------------------------------------------------------------------------------------------------


@pytest.mark.contract("2.5")
@pytest.mark.contract("1.2")
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_boxes_and_scores_are_those_of_images_that_were_resized_on_the_cpu(tmp_path, fixed_shapes):
    model = load_model(graphs.publish(tmp_path))
    options = EngineOptions(resize=True, fixed_shapes=fixed_shapes)
    ours, plain = Engine(model, options=options, batch_pixels=4 * 64 * 96), Engine(model)
    assert ours.geometry.resize_later
    assert not plain.geometry.resize_later
    ours.warm_up(4 * 64 * 96)
    grey = np.full((30, 40, 3), 102, np.uint8)  # brightness 0.4
    batch = [
        Canvas(grey, SIZE, 40, 30, pending=Resize(60, 80, (0, 0, 40, 30), True)),
        waiting(120, 160, (60, 80)),
        Canvas(noise(64, 96), SIZE, 192, 128),
    ]
    # 80 x 60 is twice 40 x 30, so the first box has the original's size
    (alone,) = ours.run(batch[:1])
    np.testing.assert_allclose(alone.boxes, [[0, 0, 20, 15], [10, 7.5, 40, 30]])
    np.testing.assert_allclose(alone.scores, [0.4, 0.2], rtol=1e-5)
    for proposals_only in (False, True):
        expected = [plain.run([finished(canvas)], proposals_only)[0] for canvas in batch]
        for result, wanted in zip(ours.run(batch, proposals_only), expected, strict=True):
            np.testing.assert_allclose(result.boxes, wanted.boxes, atol=0.01)
            # the score of the simple graph is the mean brightness, which changes by at most 1 / 255
            np.testing.assert_allclose(result.scores, wanted.scores, atol=1 / 255)
            np.testing.assert_allclose(result.proposals, wanted.proposals, atol=0.01)


def test_an_engine_without_a_resizer_finishes_the_images_itself(tmp_path):
    """With several GPUs, one of them may fail the check of its pixels."""
    engine = Engine(load_model(graphs.publish(tmp_path)))
    canvas = waiting(120, 160, (60, 80))
    (pending,), (done) = engine.run([canvas]), engine.run([finished(canvas)])
    np.testing.assert_array_equal(pending.boxes, done[0].boxes)
    np.testing.assert_array_equal(pending.scores, done[0].scores)


def test_the_option_means_cuda_only_unless_it_is_forced():
    assert not EngineOptions().resizes(CUDA)
    on_gpu = EngineOptions(resize=None)
    assert on_gpu.resizes(CUDA)
    assert not on_gpu.resizes(CPU)
    assert FORCED.resizes(CPU)


def test_an_engine_whose_runs_of_resized_images_fail_leaves_them_to_the_cpu(tmp_path, monkeypatch, caplog):
    engine = Engine(load_model(graphs.publish(tmp_path)), options=FORCED)
    rehearse(engine, 0)
    assert engine.geometry.resize_later
    monkeypatch.setattr(resize, "run", lambda session, outputs, images, sizes: [][0])
    rehearse(engine, 0)
    assert not engine.geometry.resize_later
    assert "images are resized on the CPU" in caplog.text
    canvas = waiting(120, 160, (60, 80))
    np.testing.assert_array_equal(engine.run([canvas])[0].scores, engine.run([finished(canvas)])[0].scores)


def test_an_engine_whose_resized_images_have_other_scores_leaves_them_to_the_cpu(tmp_path, monkeypatch, caplog):
    engine = Engine(load_model(graphs.publish(tmp_path)), options=FORCED)
    black = OrtValue.ortvalue_from_numpy(np.zeros((1, *SIZE, 3), np.uint8))  # score 0
    monkeypatch.setattr(Resizer, "batch", lambda *_: black)
    rehearse(engine, 0)
    assert not engine.geometry.resize_later
    assert "for the same image resized on the device" in caplog.text


def test_a_device_with_wrong_pixels_is_not_used_and_the_log_says_why(tmp_path, monkeypatch, caplog):
    resize.resizer.cache_clear()
    taps = resize.taps  # begins a pixel too late in the next line
    monkeypatch.setattr(resize, "taps", lambda size, new, start, *rest: taps(size, new, start + 1.0, *rest))
    try:
        engine = Engine(load_model(graphs.publish(tmp_path)), options=FORCED)
    finally:
        resize.resizer.cache_clear()
    assert not engine.geometry.resize_later
    assert "images are resized on the CPU, not on the CPU provider as RESIZE_ON_GPU asks" in caplog.text
    assert "differ from the CPU's by up to" in caplog.text


def test_a_device_that_fails_is_not_used_and_its_message_stays_in_the_log(monkeypatch, caplog):
    def fails(*_: object, **__: object) -> None:
        raise ValueError("words of a library")

    resize.resizer.cache_clear()
    monkeypatch.setattr(resize, "open_session", fails)
    try:
        assert resize.resizer(CPU, 0) is None
    finally:
        resize.resizer.cache_clear()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "a resize on the device fails",
        "images are resized on the CPU, not on the CPU provider as RESIZE_ON_GPU asks: the log has ONNX Runtime's "
        "message (ValueError)",
    ]


def test_images_begin_at_aligned_addresses():
    assert resize.suits([(64, 96), (800, 1344)])
    assert not resize.suits([(64, 96), (7, 11)])  # 231 bytes


def test_an_upload_copies_and_then_waits_for_the_copy(monkeypatch):
    calls = []

    def copy(target: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: ctypes.c_int) -> int:
        calls.append(("copy", kind.value))
        ctypes.memmove(target, source, size.value)
        return 0

    def wait(stream: None) -> int:
        calls.append(("wait", stream))
        return 0

    library = SimpleNamespace(cudaMemcpy=copy, cudaStreamSynchronize=wait)
    monkeypatch.setattr(cuda_runtime, "_library", lambda: library)
    values, target = noise(5, 7), np.zeros((5, 7, 3), np.uint8)
    cuda_runtime.upload(values, target.ctypes.data)
    np.testing.assert_array_equal(target, values)
    assert calls == [("copy", 1), ("wait", None)]
    library.cudaMemcpy = lambda *_: 2
    with pytest.raises(cuda_runtime.CudaError, match="cudaMemcpy failed with status 2"):
        cuda_runtime.upload(values, target.ctypes.data)
