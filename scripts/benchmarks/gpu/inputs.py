"""Canvases for the checks: the example image, noise and one colour, at sizes that fit a model."""

import numpy as np

from benchmarks.gpu.setup import EXAMPLE
from benchmarks.images import jpeg, open_rgb
from service.images.decode import decode
from service.images.fit import Canvas, Geometry

GREY = 127
# Width × height of the images before they are resized: the usual aspect ratios of photographs.
SIZES = ((640, 480), (480, 640), (1280, 720), (800, 800), (1000, 500), (333, 500))


def photographs(geometry: Geometry, count: int) -> list[Canvas]:
    """The example image at `count` of SIZES, in turn, as the service would decode it."""
    image = open_rgb(EXAMPLE)
    return [decode(jpeg(image, SIZES[number % len(SIZES)]), geometry) for number in range(count)]


def on_one_canvas(size: tuple[int, int], count: int, seed: int = 0) -> list[Canvas]:
    """`count` different images that fill a canvas of H × W: the example, shifted, with a little noise."""
    height, width = size
    pixels = np.asarray(open_rgb(EXAMPLE).resize((width, height)))
    rng = np.random.default_rng(seed)
    canvases = []
    for number in range(count):
        noise = rng.integers(-8, 9, pixels.shape, dtype=np.int16)
        moved = np.roll(pixels, 7 * number, axis=1).astype(np.int16) + noise
        canvases.append(Canvas(moved.clip(0, 255).astype(np.uint8), size, width, height))
    return canvases


def one_colour(size: tuple[int, int]) -> Canvas:
    """A grey image that fills a canvas of H × W. All its anchors tie."""
    height, width = size
    return Canvas(np.full((height, width, 3), GREY, np.uint8), size, width, height)


def of_random_sizes(geometry: Geometry, count: int, seed: int) -> list[Canvas]:
    """Noise in images of random sizes."""
    rng = np.random.default_rng(seed)
    image = open_rgb(EXAMPLE)
    sizes = [(int(rng.integers(32, 1200)), int(rng.integers(32, 1200))) for _ in range(count)]
    return [decode(jpeg(image, size), geometry) for size in sizes]


def largest(geometry: Geometry) -> tuple[int, int]:
    """The largest canvas, and of two the wide one."""
    return max(geometry.canvases, key=lambda size: (size[0] * size[1], size[1]))
