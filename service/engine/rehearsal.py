"""The first runs of a version on images in which something may be found, before it may answer requests.

A blank image has no detections, so it does not show whether labels, batches and unusual canvases work.
"""

from __future__ import annotations

import math

import numpy as np

from service.engine.engine import Engine, Result, WrongOutputError
from service.images.fit import Canvas

STRIDE = 32  # a graph that fails on a canvas does so because its sides are not multiples of its stride
SEED = 0
# Contract 1.2 promises 1e-4, but an int8 graph differs by more where values are rounded to the next step.
LARGEST_DIFFERENCE = 0.1


def rehearse(engine: Engine, batch_pixels: int) -> None:
    """Runs one canvas of each kind, and a batch of two if the pixels of a batch may be that many.

    Raises WrongOutputError, and whatever ONNX Runtime raises.
    """
    threads = max(engine.thread_counts)
    kinds: dict[tuple[int, int], tuple[int, int]] = {}
    smallest_first = sorted(engine.geometry.canvases, key=math.prod)
    for height, width in smallest_first:
        kinds.setdefault((height % STRIDE, width % STRIDE), (height, width))
    alone = {canvas: engine.run([_busy(canvas)], threads=threads)[0] for canvas in kinds.values()}
    smallest = smallest_first[0]
    if 2 * math.prod(smallest) > batch_pixels:
        return
    _compare(alone[smallest], engine.run([_busy(smallest), _dark(smallest)], threads=threads)[0])


def _compare(alone: Result, in_a_batch: Result) -> None:
    """Raises WrongOutputError if the best scores of an image depend on the batch."""
    for name in ("scores", "objectness"):
        best = [
            float(scores[0]) if len(scores) else 0.0 for scores in (getattr(alone, name), getattr(in_a_batch, name))
        ]
        if abs(best[0] - best[1]) > LARGEST_DIFFERENCE:
            raise WrongOutputError(
                f"output {name} begins with {best[0]:.3f} for an image alone, and with {best[1]:.3f} for the same "
                "image in a batch of two"
            )


def _busy(size: tuple[int, int]) -> Canvas:
    """An image with edges at every scale: large blocks of random colours, with noise in the lower half.

    It is the same on every call. Like a well exposed photograph it has neither black nor white pixels.
    """
    height, width = size
    random = np.random.default_rng(SEED)
    blocks = random.integers(16, 200, (math.ceil(height / 32), math.ceil(width / 32), 3), dtype=np.uint8)
    image = blocks.repeat(32, axis=0).repeat(32, axis=1)[:height, :width]
    image[height // 2 :] += random.integers(0, 40, (height - height // 2, width, 3), dtype=np.uint8)
    return Canvas(np.ascontiguousarray(image), size, width, height)


def _dark(size: tuple[int, int]) -> Canvas:
    height, width = size
    return Canvas(np.zeros((height, width, 3), dtype=np.uint8), size, width, height)
