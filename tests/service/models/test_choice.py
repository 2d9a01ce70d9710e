from types import SimpleNamespace

import pytest

from service.models.choice import Choices, NoDefaultModelError, NotServedError, UnknownModelError
from service.models.store import ModelPlace

OLD, NEW, OTHER = (SimpleNamespace() for _ in range(3))
SERVED = {"shapes": {1: OLD, 10: NEW}, "cars": {2: OTHER}}


def test_the_highest_version_answers_unless_the_request_names_one():
    choices = Choices(SERVED, ModelPlace("cars"))
    assert choices.choose("shapes", None) is NEW  # compared as numbers, 10 > 1
    assert choices.choose("shapes", 1) is OLD
    assert choices.choose(None, None) is OTHER


@pytest.mark.contract("4.5")
def test_a_pinned_version_answers_unless_the_request_names_one():
    choices = Choices(SERVED, ModelPlace("shapes"), pins={"shapes": 1})
    assert choices.choose("shapes", None) is OLD
    assert choices.choose(None, None) is OLD
    assert choices.choose("shapes", 10) is NEW
    assert choices.choose(None, 10) is NEW


@pytest.mark.contract("4.5")
def test_the_version_of_the_default_comes_before_the_pin():
    choices = Choices(SERVED, ModelPlace("shapes", 10), pins={"shapes": 1})
    assert choices.choose(None, None) is NEW
    assert choices.choose("shapes", None) is OLD


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ({"default": ModelPlace("gone")}, "default_model", "The default model gone is not served: it is not in the"),
        ({"default": ModelPlace("gone"), "refused": {"gone/2": "broken"}}, "default_model", "gone/2: broken"),
        ({"default": ModelPlace("gone"), "arriving": {"gone/2": "half"}}, "default_model", "gone/2: half"),
        ({"default": ModelPlace("gone"), "refused": {"gone": "unlisted"}}, "default_model", "not served: unlisted"),
        ({"default": ModelPlace("shapes", 3)}, "default_model", "The default model shapes/3 is not served"),
        ({"default_fault": "it is empty"}, "default_model", "cannot be used: it is empty"),
        ({"default": ModelPlace("shapes"), "pins": {"shapes": 3}}, "pinned_version", "shapes is pinned to version 3"),
        ({"default": ModelPlace("shapes"), "pins": {"shapes": "bad"}}, "pinned_version", "cannot be used: bad"),
    ],
)
@pytest.mark.contract("4.5")
def test_another_model_or_version_never_answers_in_place_of_the_chosen_one(how, reason, message):
    choices = Choices(SERVED, **how)
    with pytest.raises(NotServedError) as raised:
        choices.choose(None, None)
    assert raised.value.reason == reason
    assert message in str(raised.value)
    assert str(choices.default_missing()) == str(raised.value)
    assert choices.choose("cars", None) is OTHER
    assert choices.choose("shapes", 1) is OLD


def test_without_a_default_a_request_must_name_a_model_and_that_is_not_a_fault_of_the_service():
    choices = Choices(SERVED)
    with pytest.raises(NoDefaultModelError, match=r"choose one with \?model=\. Available: shapes, cars\."):
        choices.choose(None, None)
    assert choices.default_missing() is None


def test_errors_list_what_is_available_up_to_a_limit():
    with pytest.raises(UnknownModelError, match=r"Unknown model\. Available: shapes, cars\."):
        Choices(SERVED).choose("unicorn", None)
    with pytest.raises(UnknownModelError, match=r"Unknown version of model shapes\. Available: 1, 10\."):
        Choices(SERVED).choose("shapes", 2)
    many = {f"model{number}": {1: OLD} for number in range(25)}
    with pytest.raises(UnknownModelError, match="model19 and 5 more"):
        Choices(many).choose("unicorn", None)


@pytest.mark.parametrize(("name", "version"), [("gone", 5), ("gone", 6)])
def test_a_version_that_is_named_and_not_served_is_answered_with_its_reason(name, version):
    choices = Choices(refused={"gone/5": "it is damaged"}, arriving={"gone/6": "it is damaged, or on its way"})
    with pytest.raises(UnknownModelError, match=f"^Model {name}/{version} is not served: it is damaged"):
        choices.choose(name, version)
