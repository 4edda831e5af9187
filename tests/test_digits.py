"""Digits of all scripts fold one for one, and come back in any numbering system of CLDR's that is decimal."""

import random
import unicodedata

import pytest
import regex

from data_recipes.artefact import UserError
from data_recipes.writing.digits import NUMBERING_SYSTEMS, digit_systems, fold_digits, write_digits

ALL = "".join(map(chr, range(0x110000)))
# CLDR 48, supplemental/numberingSystems.json.
CLDR = {
    "arab": "٠١٢٣٤٥٦٧٨٩",
    "arabext": "۰۱۲۳۴۵۶۷۸۹",
    "beng": "০১২৩৪৫৬৭৮৯",
    "deva": "०१२३४५६७८९",
    "gujr": "૦૧૨૩૪૫૬૭૮૯",
    "guru": "੦੧੨੩੪੫੬੭੮੯",
    "knda": "೦೧೨೩೪೫೬೭೮೯",
    "latn": "0123456789",
    "mlym": "൦൧൨൩൪൫൬൭൮൯",
    "mtei": "꯰꯱꯲꯳꯴꯵꯶꯷꯸꯹",
    "olck": "᱐᱑᱒᱓᱔᱕᱖᱗᱘᱙",
    "orya": "୦୧୨୩୪୫୬୭୮୯",
    "takr": "𑛀𑛁𑛂𑛃𑛄𑛅𑛆𑛇𑛈𑛉",
    "tamldec": "௦௧௨௩௪௫௬௭௮௯",
    "telu": "౦౧౨౩౪౫౬౭౮౯",
    "tirh": "𑓐𑓑𑓒𑓓𑓔𑓕𑓖𑓗𑓘𑓙",
}


def test_the_numbering_systems_are_those_of_cldr():
    assert NUMBERING_SYSTEMS == CLDR


def test_every_decimal_digit_that_python_knows_folds_to_its_value_and_nothing_else_changes():
    folded, n_digits = fold_digits(ALL), 0
    assert len(folded) == len(ALL)
    for character, result in zip(ALL, folded, strict=True):
        value = unicodedata.decimal(character, None)
        if value is not None:
            assert result == str(value)
            n_digits += 1
        elif not regex.match(r"\p{Nd}", character):  # digits newer than this Python fold too
            assert result == character
    assert n_digits >= 650  # Unicode 14


def test_fractions_superscripts_and_letters_for_numbers_are_no_decimal_digits():
    text = "x² ½ Ⅻ ௰ ௱ ௲ ൰ 六 ①"
    assert fold_digits(text) == text


@pytest.mark.parametrize("system", CLDR)
def test_numbers_survive_the_way_into_a_system_and_back(system):
    rng = random.Random(system)
    for _ in range(200):
        text = f"₹{rng.randrange(10**12):,} कुल {rng.randrange(100)}%"
        written = write_digits(text, system)
        assert len(written) == len(text) and fold_digits(written) == text
        assert write_digits(written, system) == written
        assert system == "latn" or not regex.search("[0-9]", written)
        assert set(digit_systems(written)) == {system}


def test_digits_are_counted_by_system():
    assert digit_systems("௧௨ ०१২ 5 ۴٤ ๓") == {
        "tamldec": 2,
        "deva": 2,
        "beng": 1,
        "latn": 1,
        "arabext": 1,
        "arab": 1,
        "other": 1,
    }


def test_an_unknown_numbering_system_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="unknown numbering system 'taml'") as raised:
        write_digits("12", "taml")
    assert all(name in str(raised.value) for name in CLDR)
