"""Script and language of answers, formats and numbers: tables made by hand."""

from decimal import Decimal

import pytest

from data_recipes.languages import LANGUAGES, SCHEDULED
from eval.tasks.fidelity import BY_SCRIPT, SCRIPT_ONLY, language_basis, script_fidelity
from eval.tasks.formats import FORMATS, numbers_in, numbers_kept

# answer, script, lines right and in all, words right and in all
FIDELITY = [
    ("தமிழ் மொழி", "Taml", (1, 1, 2, 2)),
    ("தமிழ் language மொழி", "Taml", (1, 1, 2, 3)),
    ("தமிழ் language words", "Taml", (0, 1, 1, 3)),
    ("தமிழ் மொழி\nin English\n\n12 34\nதமிழ்", "Taml", (2, 3, 3, 5)),  # a line of digits is none
    ("यह हिन्दी है।", "Deva", (1, 1, 3, 3)),  # the danda is of several scripts
    ("कि\u200dम् ", "Deva", (1, 1, 1, 1)),  # a joiner belongs to its word
    ("mera naam Ram hai", "Latn", (1, 1, 4, 4)),
    ("mera नाम", "Latn", (0, 1, 1, 2)),
    ("mixedமொழி", "Taml", (0, 1, 0, 1)),  # a word of two scripts is in neither
    ("ᱥᱟᱱᱛᱟᱲᱤ", "Olck", (1, 1, 1, 1)),
    ("ꯃꯤꯇꯩ ꯂꯣꯟ", "Mtei", (1, 1, 2, 2)),
    ("کٲشُر زَبان", "Arab", (1, 1, 2, 2)),
    ("", "Taml", (0, 1, 0, 1)),
    ("12,345", "Taml", (0, 1, 0, 1)),
]


@pytest.mark.parametrize(("answer", "script", "expected"), FIDELITY)
def test_lines_and_words_in_the_script_are_counted(answer, script, expected):
    assert tuple(script_fidelity(answer, script)) == expected


def test_words_of_the_expected_answer_are_right_as_they_are():
    assert script_fidelity("GST கணக்கு", "Taml", {"GST"}) == (1, 1, 2, 2)


def test_every_language_is_in_its_own_script_and_in_no_other():
    for code in LANGUAGES:
        name, script = LANGUAGES[code].native_name, LANGUAGES[code].script
        assert script_fidelity(name, script).words_right == script_fidelity(name, script).words, code
        others = {row.script for row in LANGUAGES.values()} - {script}
        assert all(script_fidelity(name, other).words_right == 0 for other in others), code


def test_the_script_tells_eight_of_the_languages_and_no_romanised_one():
    told = {"gu", "kn", "ml", "or", "pa", "sat", "ta", "te"}
    assert {code for code in SCHEDULED if language_basis(code) == BY_SCRIPT} == told
    assert {language_basis(f"{code}-Latn") for code in SCHEDULED} == {SCRIPT_ONLY}
    assert language_basis("en") == SCRIPT_ONLY  # Latin letters tell no language
    assert language_basis("mni-Mtei") == SCRIPT_ONLY  # not its main script, and then nobody's


# format, what keeps it, what does not
KEPT = [
    ("json", ['{"a": [1]}', " [1]\n", '"x"'], ["", "{'a': 1}", 'So: {"a": 1}', '```\n{"a": 1}\n```', "NaN"]),
    ("json_object", ['{"a": 1}'], ["[1]", "1", "{"]),
    ("bullet_list", ["- a\n- b", "* एक\n\n* दो"], ["", "a\nb", "- a\nb", "-a"]),
    ("numbered_list", ["1. a\n2. b", "१. एक\n२. दो", "1) a"], ["", "1. a\n3. b", "2. a", "a", "1. a\nb"]),
    ("number", ["42", " 1,87,500 ", "१२३", "-3.5", "௧௨.", "५।", "187,500"], ["", "42 km", "4 2", "1,2"]),
    ("one_line", ["a b c", "a\n\n"], ["", "a\nb"]),
    ("one_word", ["हाँ।", "'yes'"], ["", "yes no"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kept", "broken"), KEPT)
def test_a_format_is_kept_by_the_whole_answer(name, kept, broken):
    assert [text for text in kept if not FORMATS[name](text)] == []
    assert [text for text in broken if FORMATS[name](text)] == []


def test_the_table_of_formats_is_whole():
    assert {name for name, _, _ in KEPT} == set(FORMATS)


NUMBERS = [
    ("Rs. 1,87,500 and 187,500", {"187500": 2}),
    ("१,८७,५०० रुपये", {"187500": 1}),
    ("٧٬٤٦٬٧٨٧", {"746787": 1}),
    ("௩.௫ and 3.50", {"3.5": 2}),
    ("2026-03-14", {"2026": 1, "3": 1, "14": 1}),
    ("1,2,3 and 4.", {"1": 1, "2": 1, "3": 1, "4": 1}),
    ("GLM-5.2 has 743 B", {"5.2": 1, "743": 1}),
    ("no number", {}),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_numbers_are_read_in_any_digits_and_groups(text, expected):
    assert numbers_in(text) == {Decimal(number): n for number, n in expected.items()}


@pytest.mark.parametrize(
    ("answer", "expected", "counts"),
    [
        ("२३१ लोग", "231 people", (1, 1)),
        ("239 people", "231 people", (0, 1)),
        ("5 and 7 and 9", "5, 5 and 7", (2, 3)),
        ("anything 1", "nothing", (0, 0)),
    ],
)
def test_kept_numbers_are_counted(answer, expected, counts):
    assert numbers_kept(answer, expected) == counts
