"""What every tag writes against a table made by hand, and which facts are whose."""

import datetime
import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from babel.units import format_unit as babel_format_unit

from data_recipes.artefact import UserError
from data_recipes.languages import SCHEDULED
from data_recipes.locales import coverage
from data_recipes.locales.coverage import FACTS, TASK_FACTS, source_of, supported_facts, task_reach
from data_recipes.locales.dates import format_date, format_time, month_names, weekday_names
from data_recipes.locales.numbers import format_compact, format_number, format_rupees
from data_recipes.locales.tables import TAGS, babel_locale, digit_systems_of, in_own_script, overrides, scales
from data_recipes.locales.words import (
    format_duration,
    format_in_words,
    format_unit,
    holiday_names,
    language_names,
    rupee_name,
    same_words,
    territory_names,
)
from data_recipes.tasks import TASKS
from data_recipes.text import normalise

GOLDEN = yaml.safe_load(Path(__file__).with_name("locale_golden.yaml").read_text(encoding="utf-8"))
DAY = datetime.date(1947, 8, 15)
WRITERS = {
    "number": lambda tag: format_number(187_500, tag),
    "native": lambda tag: format_number(10_000_000, tag, native_digits(tag)),
    "rupees": lambda tag: format_rupees(Decimal("187500.50"), tag),
    "lakh": lambda tag: format_compact(250_000, tag),
    "crore": lambda tag: format_compact(-10_000_000, tag),
    "thousand": lambda tag: format_compact(1_000, tag),
    "long": lambda tag: format_date(DAY, tag, "long"),
    "medium": lambda tag: format_date(DAY, tag, "medium"),
    "short": lambda tag: format_date(DAY, tag, "short"),
    "time": lambda tag: format_time(9, 5, tag),
    "half": lambda tag: format_time(17, 45, tag, "12"),
    "part": lambda tag: format_time(17, 45, tag, "words"),
    "duration": lambda tag: format_duration(3, 1, tag),
    "unit": lambda tag: format_unit(100_000, "length-kilometer", tag, "latn"),
    "weekday": lambda tag: list(weekday_names(tag) or [])[6],
    "india": lambda tag: territory_names(tag).get("IN"),
}


def native_digits(tag: str) -> str:
    """The digits of the language's own script; ASCII where it has none (en-IN, hi-Latn)."""
    return next((system for system in digit_systems_of(tag) if system != "latn"), "latn")


def test_the_golden_table_has_every_tag_and_kind_and_says_who_reviewed_it():
    assert set(GOLDEN) == set(TAGS) == {"en-IN", *SCHEDULED, "hi-Latn"}
    assert len(TAGS) == 24
    assert all(set(row) == {"reviewed", *WRITERS} for row in GOLDEN.values())


@pytest.mark.parametrize("tag", TAGS)
def test_every_kind_is_written_as_in_the_golden_table(tag):
    expected = {kind: text and normalise(text) for kind, text in GOLDEN[tag].items() if kind != "reviewed"}
    assert {kind: write(tag) for kind, write in WRITERS.items()} == expected


@pytest.mark.parametrize("tag", TAGS)
def test_every_language_groups_by_lakh_and_crore_in_ascii_digits(tag):
    assert [format_number(n, tag, "latn") for n in (0, 999, 1_000, 99_999, 187_500, 10_000_000)] == [
        *("0", "999", "1,000", "99,999", "1,87,500", "1,00,00,000")
    ]
    assert "1,00,00,000" in format_rupees(10_000_000, tag, "latn")


def test_rounding_lifts_an_amount_to_the_next_scale_and_never_before_it_is_full():
    wanted = {9_999_999: "1 crore", 9_950_000: "99.5 lakh", 99_999: "1 lakh", 99_990: "99.99 thousand"}
    wanted |= {999: "999", 0: "0", 125_500: "1.26 lakh", 10**12: "1 lakh crore", 5 * 10**10: "5,000 crore"}
    assert {n: format_compact(n, "en-IN") for n in wanted} == wanted
    assert format_compact(Decimal("999.999"), "en-IN") == "1 thousand"
    assert format_compact(-187_500, "hi", n_decimals=0, rupees=True) == "-₹2 लाख"


def test_arab_and_kharab_are_written_where_sources_agree_and_the_smaller_word_elsewhere():
    values = {
        "hi": "5 खरब",
        "ur": "۵ کھرب",
        "ne": "५ खरब",
        "gu": "500 અબજ",
        "mr": "५०० अब्ज",
        "ta": "50,000 கோடி",
    }
    assert {tag: format_compact(5 * 10**11, tag) for tag in values} == values


def test_nepali_is_not_ten_times_too_much_as_in_cldr():
    assert format_compact(10**6, "ne", digits="latn") == "10 लाख"
    assert format_compact(10**7, "ne", digits="latn") == "1 करोड"


def test_telugu_scale_words_agree_in_number():
    values = {1_000: "1 వేయి", 2_000: "2 వేలు", 100_000: "1 లక్ష", 150_000: "1.5 లక్షలు", 10**7: "1 కోటి"}
    assert {n: format_compact(n, "te") for n in values} == values


def test_number_words_are_given_where_two_sources_were_compared_and_in_either_spelling():
    assert format_in_words(187_500, "hi") == normalise("एक लाख सत्तासी हज़ार पाँच सौ")
    assert format_in_words(1_099, "ne") == "एक हजार उनान्सय"
    assert same_words("नव्वे छह", 96, "hi") is False
    assert same_words("छियानबे", 96, "hi") and same_words("छियानवे", 96, "hi")
    assert same_words("સિત્યાસી", 87, "gu") and not same_words("સિત્યાસી", 86, "gu")
    assert all(format_in_words(999_999_999, tag) for tag in overrides()["number_words"])
    assert [format_in_words(5, tag) for tag in ("doi", "ur", "kn", "sat", "hi-Latn")] == [None] * 5
    assert (format_in_words(-1, "hi"), format_in_words(10**9, "hi")) == (None, None)


def test_other_spellings_of_number_words_never_make_two_numbers_one():
    for tag, entry in overrides()["number_words"].items():
        words = {format_in_words(number, tag) for number in range(100)}
        variants = {normalise(word) for word in entry.get("also", {})}
        assert len(words) == 100
        assert not variants & words
        assert {normalise(word) for word in entry.get("also", {}).values()} <= words


def test_hindi_in_latin_letters_keeps_hindi_hours_and_never_the_names_of_english():
    assert [format_time(hour, 30, "hi-Latn", "words") for hour in (4, 17, 23)] == [
        *("4:30 subah", "5:30 shaam", "11:30 raat")
    ]
    assert (territory_names("hi-Latn"), language_names("hi-Latn"), rupee_name("hi-Latn")) == ({}, {}, None)
    assert format_unit(5, "length-meter", "hi-Latn") is None


def test_units_are_grouped_in_lakhs_and_agree_in_number():
    assert format_unit(100_000, "length-kilometer", "kn", "latn") == "1,00,000 ಕಿಲೋಮೀಟರ್\u200cಗಳು"
    assert format_unit(1, "mass-kilogram", "en-IN") == "1 kilogram"
    assert format_unit(Decimal("2.5"), "volume-liter", "mr") == "२.५ लीटर"
    assert format_unit(60, "speed-kilometer-per-hour", "bn", "latn") == "60 কিলোমিটার প্রতি ঘণ্টা"
    assert format_unit(-5, "length-meter", "hi") == "-5 मीटर"


@pytest.mark.parametrize("tag", TAGS)
def test_names_are_twelve_months_and_seven_days_in_the_own_script(tag):
    months, days = month_names(tag), weekday_names(tag)
    assert months is not None and len(set(months)) == 12 and all(in_own_script(name, tag) for name in months)
    assert days is not None and len(set(days)) == 7 and all(in_own_script(name, tag) for name in days)
    assert not any(re.search("[:\u200b-\u200f]$|^[\u200b-\u200f]", name) for name in (*months, *days))


def test_holidays_are_those_of_the_package_and_of_no_other_language():
    assert holiday_names(2026, "kn")["2026-01-26"] == "ಗಣರಾಜ್ಯೋತ್ಸವ"
    assert all(holiday_names(2026, tag) == {} for tag in ("hi-Latn", "ur", "as", "sat"))


def test_what_is_unsupported_is_so_everywhere():
    n_unsupported = 0
    for tag in TAGS:
        for fact, supported in supported_facts(tag).items():
            assert supported == bool(FACTS[fact](tag)) == (source_of(fact, tag) != "unsupported")
            n_unsupported += not supported
    assert n_unsupported > 50
    assert set(overrides()["scales_unsupported"]) == {tag for tag in TAGS if not scales(tag)}


def test_the_sources_of_facts_are_those_that_were_measured():
    # ../shared/facts: Babel 2.18 groups these in thousands, decimals first, then currency alone.
    decimals = {"kn", "ur", "ks", "sd", "mai", "doi", "kok", "mni", "sat"}
    assert {tag for tag in TAGS if source_of("number", tag) == "override"} == decimals
    assert {tag for tag in TAGS if source_of("rupees", tag) == "override"} == decimals | {"mr", "ml", "or"}
    in_words = {"as", "bn", "en-IN", "gu", "hi", "hi-Latn", "kn", "kok", "mai", "ml", "mr", "ne", "or", "pa"}
    assert {tag for tag in TAGS if supported_facts(tag)["compact"]} == in_words | {"ta", "te", "ur"}


def test_every_override_has_its_source():
    table = overrides()
    entries = [entry for words in table["scales"].values() for entry in words.values()]
    entries += [entry for rows in table["spellings"].values() for entry in rows]
    for section in ("rupee_pattern", "day_halves", "day_period_rules", "number_words"):
        entries += table[section].values()
    entries += [
        table[section] for section in ("grouping", "latin_separators", "arabic_separators", "bidi_marks")
    ]
    assert len(entries) > 70
    assert all(re.search("CLDR|indic-numtowords", entry["source"]) for entry in entries)
    sections = (
        "scales",
        "rupee_pattern",
        "rupee_words",
        "spellings",
        "day_halves",
        "withheld",
        "number_words",
    )
    assert {tag for section in sections for tag in table[section]} <= set(TAGS)
    assert {fact for facts in table["withheld"].values() for fact in facts} <= set(FACTS)


def test_a_spelling_is_still_wrong_in_babel():
    for tag, rows in overrides()["spellings"].items():
        for entry in rows:
            texts = [str(FACTS[fact](tag)) for fact in entry["facts"]]
            assert all(entry["wrong"] not in text for text in texts)
            assert any(entry["wrong"] in text for text in babel_texts(tag)), entry["wrong"]


def babel_texts(tag: str) -> list[str]:
    """Babel's own months, weekdays, hours and speeds of a tag, uncorrected."""
    locale = babel_locale(tag)
    units = ("duration-hour", "speed-kilometer-per-hour")
    amounts = [babel_format_unit(n, unit, locale=locale) for n in (1, 5) for unit in units]
    return [*locale.months["format"]["wide"].values(), *locale.days["format"]["wide"].values(), *amounts]


def test_tasks_reach_the_languages_whose_facts_are_checked():
    assert set(TASK_FACTS) == set(TASKS) - {"ui"}
    reach = {tag: task_reach(tag) for tag in TAGS}
    assert set(reach["ta"].values()) == {"yes"}
    assert reach["ne"]["date"] == "phrasings" and reach["sat"]["unit"] == "no"
    assert task_reach("en") == reach["en-IN"]
    full = {tag for tag in TAGS if "no" not in reach[tag].values()}
    assert full == {"en-IN", "bn", "gu", "hi", "mr", "ta", "te"}


def test_the_coverage_page_is_what_the_code_says():
    page = Path(coverage.__file__).with_name("coverage.md").read_text(encoding="utf-8")
    assert page == coverage.coverage_page(), "run python -m data_recipes.locales.coverage"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: format_number(1, "hi-Latm"),
            "no locale facts for the tag 'hi-Latm': did you mean 'hi-Latn'",
        ),
        (
            lambda: format_number(1, "hi", "beng"),
            "hi is not written in the digits 'beng': choose one of latn, deva",
        ),
        (lambda: format_number(0.1, "hi"), "0.1 is not an exact number"),  # pyright: ignore[reportArgumentType]
        (lambda: format_number(Decimal("NaN"), "hi"), "is not an exact number"),
        (lambda: format_number(10**60, "hi"), "more than 60 digits before or after its point"),
        (lambda: format_rupees(Decimal("0.005"), "hi"), "finer than a paisa: round it to two decimals first"),
    ],
)
def test_a_bad_question_says_what_is_wrong(call, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call()
