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
# Such a row is first ranked in shares, side by side, because one block of threads ranks a row alone, and the finest map
# of a pyramid has 200,000 anchors. The best of the whole row are among the best of its shares.
SHARES = 8
MOST_PARTS = 4  # each takes four launches


def top_k(scores: Any, k: int, low: int, high: int, digits: int) -> tuple[Any, Any]:
    """TopK of unique int64 keys, so that no two candidates are equal: first the score, then the lower place.

    A key is the score as a whole number, times 2**place_bits, minus the place. `parts` says how different scores become
    different whole numbers.
    """
    n = scores.shape[1]
    if isinstance(n, int) and n >= k:
        keys = _keys(scores, Span(low, high, digits), n.bit_length())
        _, places = op.TopK(keys, op.Constant(value_ints=[k]))
        return op.GatherElements(scores, places, axis=1), places
    # TopK needs at least k candidates in each share, so some that rank last are appended
    count = op.Shape(scores, start=1, end=2)
    rounded_up = op.Div(op.Add(count, op.Constant(value_ints=[SHARES - 1])), op.Constant(value_ints=[SHARES]))
    share = op.Max(rounded_up, op.Constant(value_ints=[k]))
    missing = op.Sub(op.Mul(share, op.Constant(value_ints=[SHARES])), count)
    before = op.Constant(value_ints=[0, 0, 0])
    padded = op.Pad(scores, op.Concat(before, missing, axis=0), op.Constant(value_float=PADDING))
    keys = _keys(padded, Span(low, high, digits), PLACE_BITS)
    shares = op.Reshape(keys, op.Concat(op.Constant(value_ints=[-1]), share, axis=0))
    best, _ = op.TopK(shares, op.Constant(value_ints=[k]))
    best, _ = op.TopK(op.Reshape(best, op.Constant(value_ints=[-1, SHARES * k])), op.Constant(value_ints=[k]))
    places = op.Mod(op.Neg(best), op.Constant(value_int=2**PLACE_BITS))
    values = op.GatherElements(padded, places, axis=1)
    return values, op.Where(op.Less(places, count), places, op.Constant(value_int=0))


def _keys(scores: Any, span: Span, place_bits: int) -> Any:
    wholes = None
    for cap, factor in parts(span, place_bits):
        limited = op.Clip(scores, op.Constant(value_float=-cap), op.Constant(value_float=cap))
        part = op.Cast(op.Mul(limited, op.Constant(value_float=factor)), to=TensorProto.INT64)
        wholes = part if wholes is None else op.Add(wholes, part)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    places = op.Range(zero, op.Squeeze(op.Shape(scores, start=1, end=2)), one)
    return op.Sub(op.Mul(wholes, op.Constant(value_int=2**place_bits)), places)


def parts(span: Span, place_bits: int) -> list[tuple[float, float]]:
    """How a score becomes a whole number: the sum of the score, limited to ±cap, times factor, for each (cap, factor).

    Let m be `digits` - 1. A number of at least 2**e has at most m binary digits behind its leading one, so it is a
    multiple of 2**(e - m). A part of cap 2**c has the factor 2**(bits - c). So it is at most 2**bits, and whole for
    magnitudes from 2**(c - bits + m) on; there begins the cap of the next part. Each part rises with the score, rounded
    towards 0 where it is not whole. Of two different scores, the part to which the smaller magnitude belongs tells them
    apart; so the sum does. -0.0 and 0.0 both become 0. EXCLUDED is -1, a multiple of every power of two up to 1, or
    limited to -cap. PADDING is limited to -2**high, below EXCLUDED.
    """
    for count in range(1, MOST_PARTS + 1):
        bits = KEY_BITS - place_bits - math.ceil(math.log2(count))
        octaves = bits - (span.digits - 1)  # that one part covers
        if count * octaves >= span.high - span.low:
            caps = [span.high - part * octaves for part in range(count)]
            return [(2.0**cap, 2.0 ** (bits - cap)) for cap in caps]
    raise ValueError(f"scores from 2**{span.low} to 2**{span.high} are too many to be ranked by int64 keys")
