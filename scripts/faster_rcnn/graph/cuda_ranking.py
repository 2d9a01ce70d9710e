"""How `operators.top_k` is written in ONNX for CUDA, where equal scores must be told apart.

ONNX Runtime's TopK on CUDA ranks equal scores in an order that depends on the length of the row, and so on the canvas.
Here it ranks unique whole numbers, which have the same order everywhere.

N  images;  n  scores of each.
"""

import math
from typing import Any

from onnx import TensorProto
from onnxscript import opset18

from faster_rcnn.detector.operators import PADDING, Span

op: Any = opset18  # typed for eager evaluation, but called while tracing

# Of an int64 key, two bits are left for the sign and for the sum of the parts below.
KEY_BITS = 62
PLACE_BITS = 22  # of the places in a row whose length depends on the canvas: four million anchors


def top_k(scores: Any, k: int, low: int, high: int, digits: int) -> tuple[Any, Any]:
    """TopK of unique int64 keys, so that no two candidates are equal: first the score, then the lower place.

    A key is the score as a whole number, times 2**place_bits, minus the place. Multiplying a float32 by a power of two
    is exact, and `parts` says why the product is a whole number.
    """
    n = scores.shape[1]
    short = not isinstance(n, int) or n < k
    given, length, place_bits = scores, op.Shape(scores, start=1, end=2), PLACE_BITS
    if short:  # TopK needs at least k candidates, so k that rank last are appended
        given = op.Pad(scores, op.Constant(value_ints=[0, 0, 0, k]), op.Constant(value_float=PADDING))
    if isinstance(n, int):
        place_bits = (n + k).bit_length()
    keys = None
    for cap, factor in parts(Span(low, high, digits), place_bits):
        limited = op.Clip(given, op.Constant(value_float=-cap), op.Constant(value_float=cap))
        part = op.Cast(op.Mul(limited, op.Constant(value_float=factor)), to=TensorProto.INT64)
        keys = part if keys is None else op.Add(keys, part)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    last = op.Squeeze(op.Shape(given, start=1, end=2))
    _, places = op.TopK(op.Sub(keys, op.Range(zero, last, one)), op.Constant(value_ints=[k]))
    values = op.GatherElements(given, places, axis=1)
    return values, op.Where(op.Less(places, length), places, zero) if short else places


def parts(span: Span, place_bits: int) -> list[tuple[float, float]]:
    """How a score becomes a whole number: the sum of the score, limited to ±cap, times factor, for each (cap, factor).

    Let m be `digits` - 1. A number of at least 2**e has at most m binary digits behind its leading one, so it is a
    multiple of 2**(e - m). With `bits` for the number, a part of cap 2**c has the factor 2**(bits - c), without the
    place's bits. So it is at most 2**bits, and exact for magnitudes from 2**(c - bits + m) on; below that begins the
    next part's cap. Each part rises with the score, and of two different scores the part to which the smaller one's
    magnitude belongs tells them apart; so the sum does. -0.0 and 0.0 are both 0. EXCLUDED is -1, a multiple of every
    power of two up to 1, or of lower caps. PADDING becomes -2**high, below EXCLUDED.
    """
    count = 0
    while True:
        count += 1
        bits = KEY_BITS - place_bits - math.ceil(math.log2(count))
        octaves = bits - (span.digits - 1)  # that one part covers
        if octaves < 1:
            raise ValueError(f"scores from 2**{span.low} to 2**{span.high} are too many to be ranked by int64 keys")
        if count * octaves >= span.high - span.low:
            break
    caps = [span.high - part * octaves for part in range(count)]
    return [(2.0**cap, 2.0 ** (bits - cap + place_bits)) for cap in caps]
