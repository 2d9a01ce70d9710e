"""A few of a model's canvases hold every image, with little padding for the shapes of photographs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.card import Card
from service.engine.few_canvases import MOST_CANVASES, few_canvases, padding
from service.engine.model import load_model
from service.images.fit import Geometry, fit

side = st.integers(16, 1400)


@st.composite
def geometries(draw):
    """The geometry of any card: two of its canvases hold the largest images, and the others have any size."""
    long = draw(st.integers(32, 1400))
    short = draw(st.integers(16, long))
    spare = st.integers(0, 64)
    needed = [(short + draw(spare), long + draw(spare)), (long + draw(spare), short + draw(spare))]
    others = draw(st.lists(st.tuples(side, side), max_size=40))
    canvases = draw(st.permutations(list(dict.fromkeys(needed + others))))
    return Geometry(tuple(canvases), draw(st.sampled_from([short, 2 * long])), long, draw(st.booleans()))


def test_every_geometry_of_this_test_is_one_that_a_card_may_have():
    card = Card(
        name="x", version=1, labels=["a"], score_threshold=0, sha256="0" * 64,
        canvases=[(32, 64), (64, 32)], resize={"min_size": 32, "max_size": 64},
    )  # fmt: skip
    assert few_canvases(card.geometry).canvases == card.geometry.canvases


@pytest.mark.contract("2.1")
@pytest.mark.contract("5.7")
@settings(max_examples=200, deadline=None)
@given(geometries(), st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), min_size=1))
def test_every_image_fits_on_one_of_the_few_canvases_at_the_same_scale(geometry, images):
    if geometry.min_size > geometry.max_size:  # then both sides may be as long as the longer one
        long = geometry.max_size
        geometry = Geometry((*geometry.canvases, (long, long)), geometry.min_size, long, geometry.antialias)
    few = few_canvases(geometry)
    assert 1 <= len(few.canvases) <= MOST_CANVASES
    assert set(few.canvases) <= set(geometry.canvases)
    for width, height in images:
        there, here = fit(width, height, geometry), fit(width, height, few)
        assert (here.height, here.width) == (there.height, there.width)


@pytest.mark.parametrize(
    ("canvases", "min_size", "max_size", "expected", "all_of_them", "few_of_them"),
    [
        # the embedded model: photographs of 4:3 lie on 432 instead of 384, which costs 48 / 432 = 11 % there
        (
            [(288, 288)] + [c for w in (320, 352, 384, 432, 512, 576) for c in ((288, w), (w, 288))],
            288, 576, {(288, 432), (432, 288), (288, 576), (576, 288)}, 0.0, 0.10,
        ),
        # the sizes of torchvision's models
        (
            [(800, 800)] + [c for w in (1088, 1216, 1344) for c in ((800, w), (w, 800))],
            800, 1333, {(800, 1088), (1088, 800), (800, 1344), (1344, 800)}, 0.03, 0.09,
        ),
    ],
)  # fmt: skip
def test_the_few_canvases_cost_a_tenth_of_padding(canvases, min_size, max_size, expected, all_of_them, few_of_them):
    geometry = Geometry(tuple(canvases), min_size, max_size, antialias=False)
    few = few_canvases(geometry)
    assert set(few.canvases) == expected
    assert padding(geometry) == pytest.approx(all_of_them, abs=0.01)
    assert padding(few) == pytest.approx(few_of_them, abs=0.01)


def test_a_canvas_that_saves_less_than_three_hundredths_is_left_out():
    # half of the photographs would have 2 / 64 = 3 % less on one of the others, so each saves 1.5 % of all pixels
    geometry = Geometry(((64, 64), (62, 64), (64, 62)), 64, 64)
    assert few_canvases(geometry).canvases == ((64, 64),)


def test_the_best_of_hundreds_of_canvases_are_found_quickly(embedded):
    geometry = load_model(embedded).card.geometry
    many = tuple((h, w) for h in range(288, 593, 19) for w in range(288, 593, 19))
    assert len(many) == 17**2
    few = few_canvases(Geometry(many, geometry.min_size, geometry.max_size))
    # 288 x 288 and steps of 19: no four canvases of this grid can be worse than those of the embedded model by much
    assert padding(few) < padding(few_canvases(geometry)) + 0.05
