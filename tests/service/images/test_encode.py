"""Encoding: other readers must find the same pixels, and other threads must not be stopped."""

import io
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.images import encode


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_a_png_holds_the_same_pixels(width, height, seed):
    image = noise(width, height, seed)
    read = Image.open(io.BytesIO(encode.png(image)))
    assert (read.format, read.mode, read.size) == ("PNG", "RGB", image.size)
    assert read.tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(1000, 700), (1, 300_000), (300_000, 1)])
def test_a_png_of_several_strips_holds_the_same_pixels(size):
    image = noise(*size)
    assert Image.open(io.BytesIO(encode.png(image))).tobytes() == image.tobytes()


def test_a_jpeg_is_the_one_that_pillow_writes_into_memory():
    image, expected = noise(300, 200), io.BytesIO()
    image.save(expected, "JPEG", quality=90)
    assert encode.jpeg(image) == expected.getvalue()


@pytest.mark.parametrize("encoder", [encode.jpeg, encode.png])
def test_other_threads_run_while_an_image_is_encoded(encoder):
    """Pillow's encoder for memory would let no other thread run before the end of the JPEG."""
    image, steps, done = noise(4000, 3000), 0, threading.Event()

    def work() -> None:
        encoder(image)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        steps += 1
    thread.join()
    assert steps > 10
