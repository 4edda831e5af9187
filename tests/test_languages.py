"""The languages are the 22 of the Eighth Schedule and English, each in the script its data is written in."""

import datetime

import pytest
from babel import Locale
from babel.dates import format_date

from data_recipes.artefact import UserError
from data_recipes.languages import LANGUAGES, SCHEDULED, language
from data_recipes.text import script_share

# The Constitution of India, Eighth Schedule, by ISO 639.
EIGHTH_SCHEDULE = [
    "as",
    "bn",
    "brx",
    "doi",
    "gu",
    "hi",
    "kn",
    "kok",
    "ks",
    "mai",
    "ml",
    "mni",
    "mr",
    "ne",
    "or",
    "pa",
    "sa",
    "sat",
    "sd",
    "ta",
    "te",
    "ur",
]


def test_the_languages_are_english_and_the_eighth_schedule():
    assert sorted(SCHEDULED) == EIGHTH_SCHEDULE
    assert set(LANGUAGES) == {"en", *EIGHTH_SCHEDULE}


def test_codes_and_names_are_the_ones_cldr_knows():
    # CLDR says Manipuri for mni and Bangla for bn; the Constitution says Manipuri and Bengali.
    english = Locale.parse("en").languages
    differing = {c: (row.name, english[c]) for c, row in LANGUAGES.items() if row.name != english[c]}
    assert differing == {"bn": ("Bengali", "Bangla")}


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_language_and_its_cldr_dates_are_written_in_its_script(code):
    row = LANGUAGES[code]
    assert row.code == code
    assert script_share(row.native_name, row.script) == 1.0
    march = format_date(datetime.date(2026, 3, 1), "MMMM", locale=code)
    assert script_share(march, row.script) == 1.0


def test_a_code_gives_its_row():
    assert (language("ta").name, language("ta").script) == ("Tamil", "Taml")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("tam", "ta"), ("tamil", "ta"), ("Telegu", "te"), ("TA", "ta"), ("bengli", "bn")],
)
def test_an_unknown_code_names_the_nearest_one_and_all_codes(wrong, nearest):
    with pytest.raises(UserError) as raised:
        language(wrong)
    assert f"did you mean {nearest!r}?" in str(raised.value)
    assert all(code in str(raised.value) for code in LANGUAGES)


@pytest.mark.parametrize("wrong", ["", "xyzzyx", "日本語"])
def test_a_code_near_to_nothing_gets_no_guess(wrong):
    with pytest.raises(UserError, match="unknown language") as raised:
        language(wrong)
    assert "did you mean" not in str(raised.value)
