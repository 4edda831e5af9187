"""Dates and times of day as a language writes them, in either digits, and dates read back from an answer.

Reads CLDR through Babel and the tables of `tables.py`; writes nothing. A form that CLDR does not hold in
the language's own script is `None`.
"""

import datetime
from functools import cache
from typing import Literal

import regex
from babel.dates import format_date as babel_format_date
from babel.dates import format_time as babel_format_time
from babel.dates import get_period_id, get_period_names

from data_recipes.locales.tables import (
    babel_locale,
    canonical_tag,
    digit_system,
    digit_systems_of,
    in_own_script,
    override,
    put_right,
)
from data_recipes.text import normalise
from data_recipes.writing.digits import NUMBERING_SYSTEMS, fold_digits, write_digits

DateStyle = Literal["full", "long", "medium", "short"]
Clock = Literal["24", "12", "words"]
DATE_STYLES: tuple[DateStyle, ...] = ("full", "long", "medium", "short")
# A pattern of CLDR's in its fields and what stands between them: d MMMM, y.
_FIELD = regex.compile(r"'[^']*'|([dMyE])\1*|[^'dMyE]+")


def withheld(fact: str, tag: str) -> bool:
    """Return whether the override table refuses a fact of Babel's."""
    return fact in (override("withheld", tag) or {})


def format_date(
    day: datetime.date, tag: str, style: DateStyle = "long", digits: str | None = None
) -> str | None:
    """Return a date in one of CLDR's forms: १४ ऑगस्ट, २०२६ (long), १४ ऑग, २०२६ (medium), १४/८/२६.

    Args:
        digits: a numbering system of the tag; without it the one CLDR writes in.

    Raises:
        UserError: an unknown tag, or digits the language is not written in.
    """
    system = digit_system(tag, digits)
    text = put_right(babel_format_date(day, style, locale=babel_locale(tag)), tag)
    if withheld(f"date_{style}", tag) or not in_own_script(text, tag):
        return None
    return write_digits(text, system)


@cache
def month_names(tag: str, width: Literal["wide", "abbreviated"] = "wide") -> tuple[str, ...] | None:
    """Return the twelve names of the months inside a date; `None` where the tag lacks them."""
    if width == "abbreviated" and withheld("date_medium", tag):
        return None
    months = babel_locale(tag).months["format"][width]
    names = tuple(put_right(months[number], tag) for number in range(1, 13))
    return names if all(in_own_script(name, tag) for name in names) else None


@cache
def weekday_names(tag: str) -> tuple[str, ...] | None:
    """Return the seven names of the weekdays, Monday first; `None` where one is not in the tag's script."""
    days = babel_locale(tag).days["format"]["wide"]
    names = tuple(put_right(days[number], tag) for number in range(7))
    return names if all(in_own_script(name, tag) for name in names) else None


@cache
def day_halves(tag: str) -> tuple[str, str] | None:
    """Return the marks of the twelve-hour clock, before and after noon; `None` outside the tag's script."""
    corrected = override("day_halves", tag)
    if corrected:
        return corrected["am"], corrected["pm"]
    for width in ("abbreviated", "wide"):
        names = get_period_names(width, "format", babel_locale(tag))
        if "am" in names and in_own_script(names["am"] + names["pm"], tag):
            return put_right(names["am"], tag), put_right(names["pm"], tag)
    return None


def _day_period(time: datetime.time, tag: str) -> str | None:
    """Return the part of the day in words; the rules are those of the language, not of a parent locale."""
    rules = override("day_period_rules", tag)
    locale = babel_locale(rules["language"] if rules else tag)
    if not locale.day_period_rules:
        return None
    period = get_period_id(time, locale=locale)
    for width in ("abbreviated", "wide", "narrow"):  # Babel's order for the field B
        name = get_period_names(width, "format", babel_locale(tag)).get(period)
        if name:
            return name if in_own_script(name, tag) else None
    return None


def format_time(
    hour: int, minute: int, tag: str, clock: Clock = "24", digits: str | None = None
) -> str | None:
    """Return a time of day: 17:45 ("24"), 5:45 with the mark of the half ("12") or with the part of the day.

    "words" is the part of the day by the language's own hours: शाम 5:45. `None` where CLDR has no such words
    in the language's script.

    Raises:
        UserError: as `format_date`.
    """
    system, time, locale = digit_system(tag, digits), datetime.time(hour, minute), babel_locale(tag)
    if clock == "24":
        text = babel_format_time(time, str(locale.datetime_skeletons["Hm"]), locale=locale)
        return write_digits(text, system)
    if clock == "words":
        word, pattern = _day_period(time, tag), str(locale.datetime_skeletons["Bhm"])
    else:
        halves = day_halves(tag)
        word = halves[hour >= 12] if halves else None
        short = str(locale.time_formats["short"].pattern)  # on the clock that the locale prefers
        pattern = short if "a" in short else str(locale.datetime_skeletons["hm"])
    if word is None:
        return None
    pattern = regex.sub("[aB]+", "'\N{OBJECT REPLACEMENT CHARACTER}'", pattern)
    text = babel_format_time(time, pattern, locale=locale).replace("\N{OBJECT REPLACEMENT CHARACTER}", word)
    return write_digits(put_right(text, tag), system)


@cache
def _date_pattern(tag: str, style: DateStyle) -> regex.Pattern[str] | None:
    """Return the pattern that reads a form back; `None` for a year of two digits, which names no century."""
    parts = []
    for match in _FIELD.finditer(normalise(babel_locale(tag).date_formats[style].pattern)):
        field = match.group()
        names = {"MMM": month_names(tag, "abbreviated"), "MMMM": month_names(tag), "EEEE": weekday_names(tag)}
        if field == "yy":
            return None
        if field in names:
            group = "weekday" if field == "EEEE" else "month"
            parts.append(rf"(?P<{group}>{'|'.join(map(regex.escape, names[field] or ('(?!)',)))})")
        elif field[0] in "dMy":
            group = {"d": "day", "M": "number", "y": "year"}[field[0]]
            parts.append(rf"(?P<{group}>\d{{4}})" if group == "year" else rf"(?P<{group}>\d\d?)")
        else:
            parts.append(regex.escape(field.strip("'")).replace(",", ",?"))
    return regex.compile("".join(parts))


def parse_date(text: str, tag: str) -> datetime.date | None:
    """Return the date that a text is, in one of CLDR's forms with a year of four digits; `None` otherwise.

    The digits are ASCII or the language's own; a comma may be left out. A weekday must be the right one.

    Raises:
        UserError: an unknown tag.
    """
    tag = canonical_tag(tag)
    written = set(regex.findall(r"\p{Nd}", text))
    if not any(written <= set(NUMBERING_SYSTEMS[system]) for system in digit_systems_of(tag)):
        return None
    for style in DATE_STYLES:
        pattern = _date_pattern(tag, style)
        match = pattern.fullmatch(fold_digits(normalise(text))) if pattern else None
        if match is None:
            continue
        found = match.groupdict()
        month = int(found["number"]) if found.get("number") else _month_number(found["month"], tag)
        try:
            day = datetime.date(int(found["year"]), month, int(found["day"]))
        except ValueError:  # the 31st of June
            return None
        weekday = found.get("weekday")
        return day if not weekday or (weekday_names(tag) or ())[day.weekday()] == weekday else None
    return None


def _month_number(name: str, tag: str) -> int:
    names = [names for width in ("wide", "abbreviated") if (names := month_names(tag, width))]
    return next(months.index(name) for months in names if name in months) + 1


def same_date(answer: str, day: datetime.date, tag: str) -> bool:
    """Return whether an answer is this date in one of the language's forms, in ASCII or its own digits."""
    if parse_date(answer, tag) == day:
        return True
    short = format_date(day, tag, "short", "latn")
    return short is not None and fold_digits(normalise(answer)) == short
