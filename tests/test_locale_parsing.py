"""Numbers, rupees and dates are read back as they were written, and nothing else is read."""

import datetime
import random
from decimal import Decimal

import pytest

from data_recipes.artefact import UserError
from data_recipes.locale_facts import rupees_in_scales
from data_recipes.locales.dates import DATE_STYLES, format_date, parse_date, same_date
from data_recipes.locales.numbers import format_compact, format_number, format_rupees, grouped
from data_recipes.locales.parsing import parse_number, parse_rupees, same_number, same_rupees
from data_recipes.locales.tables import TAGS, canonical_tag, digit_systems_of, scales

EDGES = [
    0,
    1,
    99,
    100,
    999,
    1_000,
    9_999,
    99_999,
    100_000,
    187_500,
    10**7 - 1,
    10**7,
    10**9,
    10**12,
    10**15 + 7,
]
DECIMALS = [
    Decimal(text) for text in ("0.5", "0.05", "1.5", "1234.567", "187500.50", "99999.99", "1e3", "0.00")
]


def numbers() -> list[Decimal]:
    """Edges, decimals, their negatives and 40 seeded numbers, uniform in the number of digits."""
    rng = random.Random(0)
    drawn = [Decimal(rng.randrange(10 ** rng.randrange(1, 15))) / 10 ** rng.randrange(3) for _ in range(40)]
    positive = [*map(Decimal, EDGES), *DECIMALS, *drawn]
    return positive + [-number for number in positive]


@pytest.mark.parametrize("tag", TAGS)
def test_numbers_and_rupees_are_read_back_in_each_of_the_digits(tag):
    n_read = 0
    for digits in digit_systems_of(tag):
        for number in numbers():
            text = format_number(number, tag, digits)
            assert parse_number(text, tag) == number, text
            paise = round(number, 2)
            assert parse_rupees(format_rupees(paise, tag, digits), tag) == paise
            assert same_number(text, number, tag) and not same_number(text, number + 1, tag)
            n_read += 1
    assert n_read >= 100


def test_a_number_of_sixty_digits_loses_none():
    number = int("123456789" * 6 + "123456")
    for exact in (number, -number, Decimal(f"{number}.05")):
        assert parse_number(format_number(exact, "hi", "deva"), "hi") == exact
        assert parse_rupees(format_rupees(exact, "sd"), "sd") == exact
    assert not same_number(format_number(number, "hi"), number + 1, "hi")
    assert format_compact(10**59, "hi") == "10," + "00," * 22 + "000 खरब"


@pytest.mark.parametrize("tag", [tag for tag in TAGS if scales(tag)])
def test_compact_numbers_are_read_back_to_the_digits_that_were_kept(tag):
    for digits in digit_systems_of(tag):
        for number in numbers():
            text = format_compact(number, tag, 3, digits)
            rupees = format_compact(number, tag, 3, digits, rupees=True)
            assert text is not None and rupees is not None
            read = parse_number(text, tag)
            assert read is not None and abs(read - number) <= max(abs(number) / 2000, Decimal("0.0005"))
            assert parse_rupees(rupees, tag) == read
        for scale in scales(tag):
            for count in (1, 2, 15, Decimal("7.25")):
                assert parse_number(str(format_compact(count * scale.value, tag, 12, digits)), tag) == (
                    count * scale.value
                )


@pytest.mark.parametrize("tag", ["en-IN", "hi", "bn", "ta", "te", "mr", "gu"])
def test_amounts_by_scale_of_the_recipes_are_read_too(tag):
    code = "en" if tag == "en-IN" else tag
    for amount in (1, 567, 1_000, 5_000, 100_005, 1_234_567, 90_000_000, 98_765_432):
        assert parse_rupees(str(rupees_in_scales(amount, code)), tag) == amount


@pytest.mark.parametrize(
    ("text", "tag", "number"),
    [
        ("1,87,500", "hi", 187_500),
        ("187,500", "hi", 187_500),  # western groups are no other number
        ("1,234,567", "hi", 1_234_567),
        ("12,34,567.50", "hi", "1234567.5"),
        ("१,८७,५००", "hi", 187_500),
        ("1234567", "hi", 1_234_567),
        ("−5", "hi", -5),
        ("1,87,500।", "hi", 187_500),
        (" 1.87\u00a0लाख ", "hi", 187_000),
        ("५लाख", "hi", 500_000),
        ("1 करोड\u093c 20 लाख", "hi", 12_000_000),
        ("12 लाख 34 हजार 567", "hi", 1_234_567),
        ("2 लाख करोड़", "hi", 2 * 10**12),
        ("2 Lakh Crore", "en-IN", 2 * 10**12),
        ("1.5 hazaar crore", "hi-Latn", 15 * 10**9),
        ("3 ଲକ୍ଷକୋଟି", "or", 3 * 10**12),
        ("۱٬۸۷٬۵۰۰٫۵", "ur", "187500.5"),
        ("\u200e-\u200e۱۸۷۵۰۰", "ur", -187_500),
        ("1,87,500", "ur", 187_500),
        ("1،87،500", "ks", 187_500),
    ],
)
def test_an_answer_is_read_in_any_plain_way_to_write_the_number(text, tag, number):
    assert parse_number(text, tag) == Decimal(number)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("", "hi"),
        ("-", "hi"),
        ("लाख", "hi"),
        ("12,34", "hi"),
        ("1,23,4567", "hi"),
        ("1,2345,678", "hi"),
        ("1.234,56", "hi"),
        ("12 34 567", "hi"),
        ("0,12,345", "hi"),
        ("007", "hi"),
        ("1२", "hi"),  # two scripts in one number
        ("১,৮৭,৫০০", "hi"),  # Bengali digits
        ("1٬000", "hi"),
        ("5 লাখ", "hi"),
        ("5 लाखों", "hi"),
        ("2 करोड़ लाख", "hi"),
        ("20 लाख 1 करोड़", "hi"),
        ("1.5 करोड़ 20 लाख", "hi"),
        ("1 लाख 200 हज़ार", "hi"),
        ("5 लाख", "sat"),
        ("about 5", "en-IN"),
        ("5 or 6", "en-IN"),
        ("₹5", "en-IN"),
        ("9" * 201, "en-IN"),
    ],
)
def test_what_is_not_plainly_one_number_is_not_read(text, tag):
    assert parse_number(text, tag) is None


def test_a_written_form_is_known_by_its_full_tag_too():
    for tag, full in (("hi", "hi-Deva"), ("en-IN", "en-Latn"), ("en-IN", "en"), ("hi-Latn", "hi-Latn")):
        assert canonical_tag(full) == tag
    with pytest.raises(UserError, match="no locale facts for the tag 'ks-Deva'"):
        canonical_tag("ks-Deva")


def test_a_tag_without_tables_is_an_error_and_no_wrong_answer():
    for parse in (parse_number, parse_rupees, parse_date):
        with pytest.raises(UserError, match="no locale facts for the tag 'en-US': did you mean 'en-IN'"):
            parse("1,87,500", "en-US")


@pytest.mark.parametrize(
    ("text", "tag", "amount"),
    [
        ("₹1,87,500.50", "hi", "187500.5"),
        ("Rs. 500/-", "en-IN", 500),
        ("INR 5,000", "ta", 5000),
        ("१.५ करोड़ रुपये", "hi", 15_000_000),
        ("-₹5", "hi", -5),
        ("₹-5", "hi", -5),
        ("৫০০ টাকা", "bn", 500),
        ("5 crore rupees", "en-IN", 50_000_000),
        ("₹5 crore.", "en-IN", 50_000_000),
        ("500", "hi", None),  # of what?
        ("रु. 5", "hi", 5),
        ("5 रु.", "hi", 5),
        ("₹5 रुपये", "hi", None),
        ("$5", "en-IN", None),
        ("--₹5", "hi", None),
        ("-₹-5", "hi", None),
        ("₹", "hi", None),
    ],
)
def test_rupees_need_one_sign_or_word_for_the_rupee(text, tag, amount):
    assert parse_rupees(text, tag) == (None if amount is None else Decimal(amount))
    assert amount is None or same_rupees(text, Decimal(amount), tag)


def test_grouping_matches_the_recipes_and_never_loses_a_digit():
    for n_digits in range(1, 20):
        text = grouped("9" * n_digits)
        assert text.replace(",", "") == "9" * n_digits
        assert [len(part) for part in text.split(",")[1:]] == [2] * ((n_digits - 2) // 2 - 1) + [3] * (
            n_digits > 3
        )


@pytest.mark.parametrize("tag", TAGS)
def test_dates_are_read_back_where_they_name_a_century(tag):
    days = [datetime.date(2024, 2, 29), datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)]
    days += [datetime.date(2026, month, 9) for month in range(1, 13)]
    n_read = 0
    for day in days:
        for style in DATE_STYLES:
            for digits in digit_systems_of(tag):
                text = format_date(day, tag, style, digits)
                if text is None:
                    continue
                assert parse_date(text, tag) in (day, None)
                assert parse_date(text, tag) == day or (style == "short" and str(day.year) not in text)
                assert same_date(text, day, tag)
                assert not same_date(text, day + datetime.timedelta(days=400), tag)
                n_read += 1
    assert n_read >= len(days) * 2


@pytest.mark.parametrize(
    ("text", "tag", "day"),
    [
        ("15 अगस्त 1947", "hi", (1947, 8, 15)),
        ("१५ अगस्त १९४७", "hi", (1947, 8, 15)),
        ("शुक्रवार, 15 अगस्त 1947", "hi", (1947, 8, 15)),
        ("शनिवार, 15 अगस्त 1947", "hi", None),  # it was a Friday
        ("15 ஆகஸ்ட் 1947", "ta", (1947, 8, 15)),  # without its comma
        ("31 जून 2026", "hi", None),
        ("15 आगस्ट 1947", "hi", None),
        ("15/8/47", "hi", None),  # no century
        ("১৫ अगस्त 1947", "hi", None),
        ("15 August 1947", "hi", None),
        ("१५ अगस्तमासः १९४७", "sa", (1947, 8, 15)),
        ("१५ अगस्त: १९४७", "sa", None),  # CLDR's short month, which is not taken
    ],
)
def test_a_date_is_read_in_the_forms_of_its_language_alone(text, tag, day):
    assert parse_date(text, tag) == (day and datetime.date(*day))
