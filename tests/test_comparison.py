"""Forms for comparing: what the key folds and keeps apart, shingles, the skeleton's measured recall."""

import unicodedata

import pytest

from data_recipes.screening.comparison import (
    contents,
    grapheme_shingles,
    key,
    numbers,
    skeleton,
    skeleton_shingles,
)
from data_recipes.screening.duplicates import DuplicateOptions
from tests.twin_rates import stranger_similarities, twin_similarities

MINIMAL_PAIRS = [
    ("कल", "कुल"),
    ("पता", "पुता"),
    ("मल", "मेल"),
    ("தல", "தல்"),
    ("కల", "కలి"),
    ("पढ", "पढ़"),
    ("ক্ষ", "ক্\u200cষ"),
    ("क्ष", "क्\u200dष"),
    ("ಕರಿ", "ಕೆರೆ"),
    ("കര", "കാര"),
]


@pytest.mark.parametrize(("one", "other"), MINIMAL_PAIRS)
def test_minimal_pairs_keep_two_keys_and_two_sets_of_shingles(one: str, other: str):
    assert key(one) != key(other)
    assert grapheme_shingles(f"यह {one} है", 3) != grapheme_shingles(f"यह {other} है", 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("क\u093c", "\u0958"),  # NFC decomposes it: composition exclusion
        ("é", unicodedata.normalize("NFD", "é")),
        ("एक  दो\n", "एक दो"),
        ("२५ रुपये", "25 रुपये"),
    ],
)
def test_the_key_folds_what_it_declares(one: str, other: str):
    assert key(one) == key(other)


def test_the_key_keeps_case_and_the_shingles_do_not():
    assert key("Print(X)") != key("print(x)")
    assert grapheme_shingles("Print(X)", 3) == grapheme_shingles("print(x)", 3)


def test_shingles_are_runs_of_graphemes():
    assert grapheme_shingles("தமிழ்", 2) == {"தமி", "மிழ்"}
    assert grapheme_shingles("த", 2) == {"த"}
    assert grapheme_shingles("", 2) == set()


def test_numbers_are_read_in_any_script():
    assert numbers("१२ और 34, ௫௬") == ("12", "34", "56")


def test_contents_hold_text_parts_and_tool_calls():
    call = {"function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "नमस्ते"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "हाँ", "tool_calls": None},
    ]
    texts = dict(enumerate(contents({"messages": messages})))
    assert texts[0] == ("user", '[{"text": "नमस्ते", "type": "text"}]')
    assert '"name": "f"' in texts[1][1]
    assert texts[2] == ("assistant", "हाँ")


def test_a_skeleton_is_the_consonants_whatever_the_script():
    assert skeleton("हिन्दी") == skeleton("hindee") == skeleton("Hindi") == "hnt"
    assert skeleton("தமிழ்") == skeleton("thamizh") == skeleton("Tamil") == "tnl"
    assert skeleton_shingles("आ ई", 3) == set()


def test_romanised_sentences_are_found_and_strangers_are_not():
    threshold = DuplicateOptions().twin_similarity
    twins = [value for values in twin_similarities().values() for value in values]
    assert len(twins) == 29
    assert (
        sum(value >= threshold for value in twins) >= 27
    )  # Gujarati's anusvara and Urdu's vowel letters are missed
    assert max(stranger_similarities()) < 0.3
