"""The operators in the form for CUDA: the same answers as torchvision's suppression and PyTorch's stable sort."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from faster_rcnn.detector.operators import EXCLUDED, PADDING, Span, nms, probabilities_above, top_k
from faster_rcnn.detector.proposals import MARGIN_LIMIT, MARGIN_OFFSET, OBJECTNESS, SHIFTED_MARGINS
from faster_rcnn.graph.cuda_ranking import KEY_BITS, PLACE_BITS, parts
from faster_rcnn.graph.cuda_suppression import BLOCK, MOST_AT_ONCE, expand_calls
from faster_rcnn.graph.translations import OPSET, TRANSLATIONS
from faster_rcnn.torchvision_adapter.detector import LOGITS
from service.engine.providers import CPU, open_session, session_options

Run = Callable[..., list[np.ndarray]]
Boxes = list[tuple[float, float, float, float]]


class Suppression(nn.Module):
    def __init__(self, threshold: float, keep: int) -> None:
        super().__init__()
        self.threshold, self.keep = threshold, keep

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return nms(boxes, scores, self.threshold, self.keep)


class Ranking(nn.Module):
    def __init__(self, k: int, span: Span) -> None:
        super().__init__()
        self.k, self.span = k, span

    def forward(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return top_k(scores, self.k, self.span)


def exported(module: nn.Module, inputs: dict[str, Tensor], dynamic: tuple[int, ...], folder: Path) -> Run:
    """Runs the form for CUDA on the CPU.  dynamic: the axes of the inputs whose length is symbolic."""
    axes = {axis: torch.export.Dim(f"axis{axis}") for axis in dynamic}
    program = torch.onnx.export(
        module.eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET, input_names=list(inputs),
        dynamic_shapes=tuple(axes for _ in inputs), custom_translation_table=TRANSLATIONS["cuda"], verbose=False,
    )  # fmt: skip
    assert program is not None
    expand_calls(program.model)
    program.save(str(folder / "model.onnx"))
    session = open_session((folder / "model.onnx").read_bytes(), CPU, session_options(1))
    return lambda *values: session.run(None, dict(zip(inputs, values, strict=True)))


def suppression(n: int, threshold: float, keep: int, folder: Path) -> Run:
    return exported(
        Suppression(threshold, keep), {"boxes": torch.rand(2, n, 4), "scores": torch.rand(2, n)}, (0,), folder
    )


CANDIDATES = 64


@pytest.fixture(scope="module", params=[0.7, 0.3])
def few(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Run]:
    return request.param, suppression(CANDIDATES, request.param, CANDIDATES, tmp_path_factory.mktemp("few"))


def by_torchvision(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """The places of the survivors. The overlap is compared as in ONNX: with the threshold's float32."""
    real = np.flatnonzero(scores > 0)
    kept = torchvision.ops.nms(
        torch.from_numpy(boxes[real]), torch.from_numpy(scores[real]), float(np.float32(threshold))
    )
    return sorted(real[kept.numpy()].tolist())


def padded(boxes: Boxes, scores: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """One image with CANDIDATES candidates, best first; those that are missing have no area and are excluded."""
    best_first = np.full(CANDIDATES, EXCLUDED, np.float32)
    best_first[: len(boxes)] = sorted(scores, reverse=True)
    corners = np.zeros((CANDIDATES, 4), np.float32)
    corners[: len(boxes)] = boxes
    return corners[None], best_first[None]


# Corners in halves, so that boxes without area, equal boxes and overlaps equal to a threshold are frequent: an IoU of
# 0.7 is 7 × 10 in 10 × 10, 0.3 is 3 × 10 in 10 × 10.
half = st.integers(0, 24).map(lambda halves: halves / 2)
box = st.tuples(half, half, half, half).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
known = st.sampled_from([(0, 0, 10, 10), (0, 0, 7, 10), (0, 0, 3, 10), (0, 0, 10, 0)])
score = st.sampled_from([0.25, 0.5, 0.75, 1.0]) | st.floats(0.0009765625, 1, width=32)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(box | known, score), min_size=1, max_size=CANDIDATES), st.data())
def test_the_survivors_are_torchvisions(few: tuple[float, Run], candidates: list, data: st.DataObject) -> None:
    threshold, run = few
    boxes, scores = padded([one for one, _ in candidates], [value for _, value in candidates])
    excluded = data.draw(st.sets(st.integers(0, len(candidates) - 1), max_size=5))
    scores[0, list(excluded)] = EXCLUDED
    (found,) = run(boxes, scores)
    survivors = by_torchvision(boxes[0], scores[0], threshold)
    assert np.flatnonzero(found[0] > 0).tolist() == survivors
    np.testing.assert_array_equal(found[0, survivors], scores[0, survivors])
    assert set(found[found <= 0]) <= {np.float32(EXCLUDED)}


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 17.0])
def test_a_chain_of_sliding_boxes_takes_more_steps_than_one_round_has(few: tuple[float, Run], shift: float) -> None:
    """Each of 60 boxes, 100 wide, suppresses its neighbour if that is kept: IoU (100 - shift) / (100 + shift)."""
    threshold, run = few
    boxes, scores = padded(
        [(place * shift, 0, place * shift + 100, 50) for place in range(60)], [1 - place / 100 for place in range(60)]
    )
    (found,) = run(boxes, scores)
    survivors = by_torchvision(boxes[0], scores[0], threshold)
    assert np.flatnonzero(found[0] > 0).tolist() == survivors
    if shift == 17 and threshold == 0.7:  # 83 / 117 = 0.709: every second box is kept, decided one after the other
        assert survivors == list(range(0, 60, 2))


def test_images_of_a_batch_do_not_meet(few: tuple[float, Run]) -> None:
    threshold, run = few
    rng = np.random.default_rng(0)
    corners = rng.random((5, CANDIDATES, 2), np.float32) * 60
    boxes = np.concatenate([corners, corners + rng.random((5, CANDIDATES, 2), np.float32) * 60], axis=2)
    scores = -np.sort(-rng.random((5, CANDIDATES), np.float32), axis=1)
    scores[3] = EXCLUDED
    scores[4, 40:] = PADDING
    (found,) = run(boxes, scores)
    for image in range(5):
        assert np.flatnonzero(found[image] > 0).tolist() == by_torchvision(boxes[image], scores[image], threshold)
    assert found.min() == EXCLUDED


KEEP = 40
MANY = MOST_AT_ONCE + 3 * BLOCK + 7


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return suppression(MANY, 0.5, KEEP, tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("spread", [3, 30, 300, 3000])
@pytest.mark.parametrize("candidates", [0, 1, BLOCK, BLOCK + 1, MANY])
def test_the_best_survivors_of_many_candidates_are_torchvisions(many: Run, spread: int, candidates: int) -> None:
    """On a small area few boxes survive, so that all blocks are needed; on a large one the first block has enough."""
    rng = np.random.default_rng(spread)
    corners = rng.random((2, MANY, 2), np.float32) * spread
    boxes = np.concatenate([corners, corners + 5 + rng.random((2, MANY, 2), np.float32) * 20], axis=2)
    scores = -np.sort(-rng.integers(1, 2000, (2, MANY)).astype(np.float32), axis=1)
    scores[rng.random((2, MANY)) < 0.1] = EXCLUDED
    scores[:, candidates:] = EXCLUDED
    scores[1, candidates // 2 :] = EXCLUDED
    (found,) = many(boxes, scores)
    assert found.shape == scores.shape
    for image in range(2):
        expected = by_torchvision(boxes[image], scores[image], 0.5)[:KEEP]
        assert np.flatnonzero(found[image] > 0)[:KEEP].tolist() == expected


FIXED, K = 300, 20
SPANS = {
    "margins": SHIFTED_MARGINS,
    "objectness": OBJECTNESS,
    "probabilities": probabilities_above(0.05),
    "logits": LOGITS,
}


def shifted_margin(steps: int) -> float:
    """What the proposal layer ranks: margins in steps of 2⁻¹⁴, or any that torch rounds, limited and made positive."""
    return float(np.float32(np.clip(steps / 16384, -MARGIN_LIMIT, MARGIN_LIMIT) + MARGIN_OFFSET))


def of_18_bits(value: float) -> float:
    spread = np.float32(value) * np.float32(65)
    return float(spread - (spread - np.float32(value)))


SCORES = {
    "margins": st.integers(-600_000, 600_000).map(shifted_margin) | st.floats(34, 94, width=32),
    "objectness": st.floats(2.0**-44, 1, width=32) | st.just(0.0) | st.sampled_from([1.0, 2.0**-44, 1 - 2.0**-24]),
    "probabilities": st.floats(float(np.nextafter(np.float32(0.05), np.float32(1))), 1, width=32),
    "logits": (st.floats(2.0**-27, 2.0**15, width=32) | st.floats(-(2.0**15), -(2.0**-27), width=32)).map(of_18_bits)
    | st.sampled_from([0.0, -0.0, PADDING, 1.0, -1.0]),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(SPANS))
def rankings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run, Run]:
    """The rankings of FIXED scores, and of any number of them."""
    span, scores = SPANS[request.param], {"scores": torch.rand(2, FIXED)}
    fixed = exported(Ranking(K, span), scores, (0,), tmp_path_factory.mktemp("fixed"))
    return request.param, fixed, exported(Ranking(K, span), scores, (0, 1), tmp_path_factory.mktemp("any"))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_ranking_is_a_stable_sort(rankings: tuple[str, Run, Run], data: st.DataObject) -> None:
    kind, fixed, of_any_length = rankings
    values = data.draw(st.lists(SCORES[kind], min_size=1, max_size=12))  # few values, so that many scores are equal
    choice = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    length = data.draw(st.sampled_from([1, 2, K - 1, K, K + 1, 150, FIXED, 1000]))
    excluded = [] if kind == "logits" else [EXCLUDED]
    scores = choice.choice(np.array(values + excluded, np.float32), (2, length))
    expected = top_k(torch.from_numpy(scores), K, SPANS[kind])
    for run in [of_any_length] + [fixed] * (length == FIXED):
        found = run(scores)
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, wanted.numpy())


def test_neighbouring_scores_have_different_keys() -> None:
    """At both ends of every part, and in its middle, the sum of the parts tells neighbouring float32 apart."""
    for span, place_bits in ((SHIFTED_MARGINS, PLACE_BITS), (OBJECTNESS, 12), (probabilities_above(0), 17)):
        pieces = parts(span, place_bits)
        for cap, _ in pieces:
            for edge in (cap, cap * 0.75, cap / 2):
                pair = (float(np.nextafter(np.float32(edge), np.float32(0))), edge)
                lower, upper = (sum(int(min(one, top) * factor) for top, factor in pieces) for one in pair)
                assert lower < upper, (span, edge)


def test_keys_fit_into_int64_whatever_the_span() -> None:
    for span in (SHIFTED_MARGINS, OBJECTNESS, LOGITS, *(probabilities_above(floor) for floor in (0, 1e-9, 0.001, 0.5))):
        for place_bits in (1, 8, 17, PLACE_BITS):
            largest = sum(int(cap * factor) for cap, factor in parts(span, place_bits)) * 2**place_bits
            assert largest <= 2**KEY_BITS
            assert largest + 2**place_bits < 2**63


def test_a_span_that_no_key_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="from 2\\*\\*-1000 to 2\\*\\*1000 are too many"):
        parts(Span(-1000, 1000), PLACE_BITS)
