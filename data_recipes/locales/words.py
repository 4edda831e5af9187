"""Numbers in words, units, durations and names, for the tags and languages whose words a source vouches for.

Reads CLDR through Babel, `indic-numtowords` and `holidays` by way of `locale_facts`, and the tables of
`tables.py`; writes nothing. What is not in the language's own script, or has no checked source, is `None`
or left out.
"""

from collections.abc import Callable
from decimal import Decimal
from functools import cache

import regex
from babel.numbers import get_currency_name
from babel.units import format_unit as babel_format_unit

from data_recipes import locale_facts
from data_recipes.locales.dates import withheld
from data_recipes.locales.numbers import format_number
from data_recipes.locales.tables import (
    babel_locale,
    exact,
    in_own_script,
    language_code,
    override,
    put_right,
)
from data_recipes.text import normalise

MAX_IN_WORDS = 99_99_99_999  # indic-numtowords reads digit by digit from 10^9 on, or fails
_NO_SPACE = regex.compile(r"(?<=\d)(?=\p{L})")  # CLDR 47 and 48.2 have 5किलोमिटर in ne, beside 5 किलोग्राम
_ASCII_NUMBER = regex.compile(r"\d+(?:\.\d+)?")


def format_in_words(number: int, tag: str) -> str | None:
    """Return a whole number in words, up to nine digits; `None` where one source alone has the words.

    `locale_facts.number_words` also gives those of one unchecked source; these were laid beside a second.
    """
    entry = override("number_words", tag)
    if entry is None or not 0 <= number <= MAX_IN_WORDS:
        return None
    words = locale_facts.number_words(number, language_code(tag))
    if words is None:
        return None
    spellings = {normalise(k): normalise(v) for k, v in entry.get("spellings", {}).items()}
    return " ".join(spellings.get(word, word) for word in words.split(" "))


def same_words(answer: str, number: int, tag: str) -> bool:
    """Return whether an answer is this number in words, in either spelling where two sources differ."""
    expected = format_in_words(number, tag)
    if expected is None:
        return False
    entry = override("number_words", tag)
    variants = {normalise(k): normalise(v) for k, v in entry.get("also", {}).items()}
    return " ".join(variants.get(word, word) for word in normalise(answer).split(" ")) == expected


def format_unit(value: int | Decimal, unit: str, tag: str, digits: str | None = None) -> str | None:
    """Return an amount with CLDR's name of the unit, grouped in lakhs: 1,00,000 ಕಿಲೋಮೀಟರ್‌ಗಳು.

    Args:
        unit: CLDR's name of the unit, a value of `locale_facts.UNITS` or "duration-hour".

    Raises:
        UserError: as `format_number`.
    """
    number, fact = exact(value), "duration" if unit.startswith("duration-") else "unit"
    if withheld(fact, tag):
        return None
    pattern = f"0.{'#' * len(f'{number:f}'.partition('.')[2])}".rstrip(".")
    for length in ("long", "short"):  # Babel loses the long form of some locales
        text = babel_format_unit(abs(number), unit, length=length, format=pattern, locale=babel_locale(tag))
        text = put_right(text, tag)
        if unit not in text and any(c.isalpha() for c in text) and in_own_script(text, tag):
            text = _NO_SPACE.sub(" ", text)
            return _ASCII_NUMBER.sub(format_number(number, tag, digits), text, count=1)
    return None


def format_duration(hours: int, minutes: int, tag: str, digits: str | None = None) -> str | None:
    """Return hours and minutes in words of the language: 3 ghante 20 minutes."""
    parts = [
        format_unit(hours, "duration-hour", tag, digits),
        format_unit(minutes, "duration-minute", tag, digits),
    ]
    return None if None in parts else " ".join(str(part) for part in parts)


def rupee_name(tag: str) -> str | None:
    """Return CLDR's name of India's currency in the language; `None` where it is not in its script."""
    name = put_right(get_currency_name("INR", locale=babel_locale(tag)), tag)
    return name if not withheld("rupee_name", tag) and in_own_script(name, tag) else None


def _names(fact: str, named: Callable[[str], dict[str, str]], tag: str) -> dict[str, str]:
    names = {} if withheld(fact, tag) else named(language_code(tag))
    return {code: name for code, name in names.items() if in_own_script(name, tag)}


@cache
def territory_names(tag: str) -> dict[str, str]:
    """Return the names of countries by ISO 3166 code; those not in the tag's script are left out."""
    return _names("territory_names", locale_facts.territories, tag)


@cache
def language_names(tag: str) -> dict[str, str]:
    """Return the names of languages by ISO 639-1 code; those not in the tag's script are left out."""
    return _names("language_names", locale_facts.language_names, tag)


@cache
def holiday_names(year: int, tag: str) -> dict[str, str]:
    """Return India's public holidays of a year by ISO date, from `holidays`; empty where it lacks the tag."""
    return _names("holiday_names", lambda code: locale_facts.india_holidays(year, code), tag)
