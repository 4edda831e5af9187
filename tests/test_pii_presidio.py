"""Presidio's recognisers as an extra: what they add, and what is said where Presidio is missing."""

import importlib.util

import pytest

from data_recipes.artefact import UserError
from data_recipes.pii.recognisers import find_pii
from data_recipes.pii.step import PiiOptions, remove_pii
from data_recipes.writing.digits import write_digits

CARD = "4111 1111 1111 1111"  # the card networks' test number
installed = importlib.util.find_spec("presidio_analyzer") is not None


@pytest.mark.skipif(not installed, reason="the extra `presidio` is not installed")
@pytest.mark.parametrize("system", ["latn", "deva", "tamldec"])
def test_a_card_number_is_found_in_any_digits_without_an_nlp_engine(system: str):
    text = f"कार्ड {write_digits(CARD, system)} है, आधार 2341 2341 2346"
    row = {"id": "a", "language": "hi", "messages": [{"role": "user", "content": text}]}
    (clean,) = remove_pii([row], PiiOptions(action="surrogate", presidio=("CREDIT_CARD",)), bytes(32))
    assert clean["messages"][0]["content"].startswith("कार्ड <CREDIT_CARD> है, आधार 1")
    assert clean["transforms"][0]["checks"]["found"] == {"AADHAAR": 1, "CREDIT_CARD": 1}


@pytest.mark.skipif(installed, reason="the extra `presidio` is installed")
def test_without_presidio_the_way_out_is_named():
    with pytest.raises(
        UserError, match=r"CREDIT_CARD is found by Presidio, .*pip install 'local-experts\[presidio\]'"
    ):
        find_pii(CARD, presidio=("CREDIT_CARD",))


def test_an_entity_that_is_not_offered_is_named():
    with pytest.raises(UserError, match="'PERSON'.*CREDIT_CARD"):
        find_pii(CARD, presidio=("PERSON",))
