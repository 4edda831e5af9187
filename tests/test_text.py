"""Words that differ stay apart, the forms of one word meet, and scripts are counted right."""

import unicodedata

import pytest

from data_recipes.languages import LANGUAGES
from data_recipes.text import normalise, script_share

ZWNJ, ZWJ = "\u200c", "\u200d"
# Two words that a normaliser which drops marks turns into one (facts/indic-text.md).
MINIMAL_PAIRS = [
    ("कल", "कुल"),
    ("पता", "पुता"),
    ("मल", "मेल"),
    ("தல", "தல்"),
    ("కల", "కలి"),
    ("কাল", "কাঁল"),
    ("सज", "सज़"),
    ("ரகம்", "றகம்"),
]
# A nukta letter in one code point, and the same letter as base and nukta.
NUKTA_LETTERS = [
    ("\u0929", "\u0928\u093c"),
    ("\u0931", "\u0930\u093c"),
    ("\u0958", "\u0915\u093c"),
    ("\u095b", "\u091c\u093c"),
    ("\u095c", "\u0921\u093c"),
    ("\u09dc", "\u09a1\u09bc"),
    ("\u09df", "\u09af\u09bc"),
    ("\u0a33", "\u0a32\u0a3c"),
    ("\u0a5b", "\u0a1c\u0a3c"),
    ("\u0b5c", "\u0b21\u0b3c"),
]
# Vowel signs in one code point, and as the two halves that stand left and right of the letter.
SPLIT_VOWELS = [
    ("கொ", "க\u0bc6\u0bbe"),
    ("கோ", "க\u0bc7\u0bbe"),
    ("কো", "ক\u09c7\u09be"),
    ("കോ", "ക\u0d47\u0d3e"),
    ("କୋ", "କ\u0b47\u0b3e"),
]
INDIC_BLOCKS = {
    "Arabic": (0x0600, 0x06FF),
    "Devanagari to Malayalam": (0x0900, 0x0D7F),
    "Ol Chiki": (0x1C50, 0x1C7F),
    "Vedic Extensions": (0x1CD0, 0x1CFF),
    "General Punctuation": (0x2000, 0x206F),
    "Devanagari Extended": (0xA8E0, 0xA8FF),
    "Meetei Mayek": (0xABC0, 0xABFF),
}


@pytest.mark.parametrize(("one", "other"), MINIMAL_PAIRS)
def test_minimal_pairs_stay_apart(one, other):
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(("one", "two"), NUKTA_LETTERS + SPLIT_VOWELS)
def test_both_spellings_of_a_letter_become_one(one, two):
    assert normalise(one) == normalise(two)


@pytest.mark.parametrize(
    ("joined", "plain"),
    [
        (f"क्{ZWNJ}ष", "क्ष"),  # half forms kept from joining
        (f"चौर{'्'}{ZWJ}याहत्तर", "चौर्याहत्तर"),  # the Marathi eyelash ra
        (f"ಮೀಟರ್{ZWNJ}ಗಳು", "ಮೀಟರ್ಗಳು"),
        (f"ন্{ZWJ}", "ন্"),
    ],
)
def test_joiners_are_part_of_the_spelling(joined, plain):
    assert normalise(joined) == joined != normalise(plain)


def test_white_space_is_one_space_and_none_at_the_ends():
    assert normalise("\n 5:45\u202fமாலை\t\u00a0 இன்று \u2003") == "5:45 மாலை இன்று"
    assert normalise(" \n\t ") == ""


def test_compatibility_forms_digits_and_case_stay():
    assert normalise("ﬁ ² Ａ ½ ৩ AbC") == "ﬁ ² Ａ ½ ৩ AbC"


def test_normalise_changes_nothing_the_second_time_over_all_indic_blocks():
    n_checked = 0
    for first, last in INDIC_BLOCKS.values():
        for character in map(chr, range(first, last + 1)):
            for text in (character, f"क{character}", f"{character}\u093c", f" {character} \u09bc{character}"):
                once = normalise(text)
                assert normalise(once) == once, [f"{ord(c):04x}" for c in text]
                assert once == normalise(unicodedata.normalize("NFD", text))
                n_checked += 1
    assert n_checked > 6000


@pytest.mark.parametrize(
    ("text", "script", "share"),
    [
        ("தமிழ்", "Taml", 1.0),
        ("தமிழ்", "Deva", 0.0),
        ("ab कख", "Deva", 0.5),
        ("ab कि", "Deva", 0.5),  # a vowel sign counts as much as a letter
        ("abc क", "Latn", 0.75),
        ("14 மார்ச், 2026", "Taml", 1.0),  # digits and signs count for neither side
        ("₹12,34,567", "Taml", 0.0),
        ("২০২৬", "Beng", 0.0),
        ("", "Latn", 0.0),
        ("…!", "Latn", 0.0),
        ("হ্যাঁ।", "Beng", 1.0),  # the danda is shared between scripts
        ("हाँ।", "Deva", 1.0),
        (f"ಮೀಟರ್{ZWNJ}ಗಳು", "Knda", 1.0),
        ("کِلو", "Arab", 1.0),  # Arabic vowel marks are shared too
        ("ᱥᱟᱱᱛᱟᱲᱤ", "Olck", 1.0),
        ("5 km", "Taml", 0.0),
    ],
)
def test_script_share_is_counted_over_letters_and_marks_of_one_script(text, script, share):
    assert script_share(text, script) == share


def test_each_script_owns_its_letters_and_no_other_scripts():
    letter = {
        "Latn": "a",
        "Beng": "ক",
        "Deva": "क",
        "Gujr": "ક",
        "Knda": "ಕ",
        "Arab": "ک",
        "Mlym": "ക",
        "Orya": "କ",
        "Guru": "ਕ",
        "Olck": "ᱠ",
        "Taml": "க",
        "Telu": "క",
    }
    assert letter.keys() == {language.script for language in LANGUAGES.values()}
    for script in letter:
        for other, character in letter.items():
            assert script_share(character, script) == float(script == other)
