"""How a language writes dates, times, amounts, units and names: the facts behind every row and every checker.

Reads CLDR through Babel, number words through `indic-numtowords`, holidays through `holidays`; writes
nothing. A fact that a source does not hold for a language is `None`, never a fallback in another language.
"""

import datetime
from functools import cache

import holidays
from babel import Locale
from babel.dates import format_date, format_time
from babel.units import format_unit
from indic_numtowords import num2words

from data_recipes.languages import language
from data_recipes.text import normalise, script_share

UNITS: dict[str, str] = {  # the symbol in the question -> CLDR's name of the unit
    "km": "length-kilometer",
    "m": "length-meter",
    "cm": "length-centimeter",
    "mm": "length-millimeter",
    "kg": "mass-kilogram",
    "g": "mass-gram",
    "L": "volume-liter",
    "mL": "volume-milliliter",
    "km/h": "speed-kilometer-per-hour",
    "m²": "area-square-meter",
}
# Scale words (one, many) for crore, lakh, thousand and the rupee, as in everyday use. CLDR has no lakh and
# crore for ta, te and en_IN (it writes "million"), so these are ours; they want a native reader's review.
_SCALES: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (("crore", "crore"), ("lakh", "lakh"), ("thousand", "thousand"), ("rupee", "rupees")),
    "hi": (("करोड़", "करोड़"), ("लाख", "लाख"), ("हज़ार", "हज़ार"), ("रुपया", "रुपये")),
    "bn": (("কোটি", "কোটি"), ("লাখ", "লাখ"), ("হাজার", "হাজার"), ("টাকা", "টাকা")),
    "ta": (("கோடி", "கோடி"), ("லட்சம்", "லட்சம்"), ("ஆயிரம்", "ஆயிரம்"), ("ரூபாய்", "ரூபாய்")),
    # Telugu's plurals in the oblique case: another amount or the rupee always follows.
    "te": (("కోటి", "కోట్ల"), ("లక్ష", "లక్షల"), ("వెయ్యి", "వేల"), ("రూపాయి", "రూపాయలు")),
    "mr": (("कोटी", "कोटी"), ("लाख", "लाख"), ("हजार", "हजार"), ("रुपया", "रुपये")),
    "gu": (("કરોડ", "કરોડ"), ("લાખ", "લાખ"), ("હજાર", "હજાર"), ("રૂપિયો", "રૂપિયા")),
}
# Misspellings of indic-numtowords 1.1.0 (wrong -> right): 81, 89, 92, 98 and a stray joiner in Tamil, and the
# Hindi spelling of thousand in Marathi. Its Kannada is past mending: 110 and 120 are the same two letters.
_SPELLINGS: dict[str, dict[str, str]] = {
    "ta": {
        "ஓன்று": "ஒன்று",
        "ஓன்பது": "ஒன்பது",
        "தொண்ணூற்றிரெண்டு": "தொண்ணூற்றிரண்டு",
        "தொண்ணூரெட்டு": "தொண்ணூற்றெட்டு",
        "\u200c": "",
    },
    "mr": {"हज\u093cार": "हजार"},
}
_BROKEN_NUMBER_WORDS = frozenset({"kn"})


@cache
def _locale(code: str) -> Locale:
    return Locale.parse("en_IN" if code == "en" else code)


def long_date(day: datetime.date, code: str) -> str:
    """Return a date without its weekday, in CLDR's long form: 14 மார்ச், 2026."""
    return normalise(format_date(day, "long", locale=_locale(code)))


def day_time(hour: int, minute: int, code: str) -> str | None:
    """Return a time of day on the twelve-hour clock with the part of the day in words: மாலை 5:45.

    The order is CLDR's skeleton `Bhm`. `None` where CLDR has no rules for the parts of the day: Babel prints
    the words for a.m. and p.m. then, and half past noon would be "evening".
    """
    locale = _locale(code)
    if not locale.day_period_rules:
        return None
    pattern = str(locale.datetime_skeletons["Bhm"])
    return normalise(format_time(datetime.time(hour, minute), pattern, locale=locale))


def amount_of(amount: int, unit: str, code: str) -> str | None:
    """Return an amount with CLDR's name of the unit; `None` where there is none in the language's script.

    Babel 2.18 loses the long form of some locales and prints the unit's identifier: the short form is tried
    then.
    """
    for length in ("long", "short"):
        text = normalise(format_unit(amount, unit, length=length, locale=_locale(code)))
        if unit not in text and script_share(text, language(code).script) == 1.0:
            return text
    return None


def duration(hours: int, minutes: int, code: str) -> str | None:
    """Return hours and minutes in words of the language: 3 மணிநேரங்கள் 20 நிமிடங்கள்."""
    parts = [amount_of(hours, "duration-hour", code), amount_of(minutes, "duration-minute", code)]
    return None if None in parts else " ".join(str(part) for part in parts)


def lakh_grouping(amount: int) -> str:
    """Return a whole number with the Indian grouping, 12,34,567, in ASCII digits."""
    head, tail = divmod(amount, 1000)
    if head == 0:
        return str(tail)
    groups = [f"{tail:03d}"]
    while head >= 100:
        head, pair = divmod(head, 100)
        groups.insert(0, f"{pair:02d}")
    return ",".join([str(head), *groups])


def rupees(amount: int) -> str:
    """Return whole rupees with sign and lakh grouping: ₹12,34,567 (the same in every language here)."""
    return f"₹{lakh_grouping(amount)}"


def rupees_in_scales(amount: int, code: str) -> str | None:
    """Return whole rupees by crore, lakh and thousand: 12 லட்சம் 34 ஆயிரம் 567 ரூபாய்."""
    if code not in _SCALES:
        return None
    *scales, (rupee, many_rupees) = _SCALES[code]
    parts, rest = [], amount
    for size, (one, many) in zip((10_000_000, 100_000, 1_000), scales, strict=True):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {one if count == 1 else many}")
    if rest:
        parts.append(str(rest))
    return " ".join([*parts, rupee if amount == 1 else many_rupees])


def number_words(number: int, code: str) -> str | None:
    """Return a whole number in words, as `indic-numtowords` writes it.

    `None` for a language it lacks, gets wrong, or writes in another script than ours (Sindhi and Manipuri in
    1.1.0).
    """
    if code in _BROKEN_NUMBER_WORDS:
        return None
    try:
        words = normalise(str(num2words(number, lang=code)))
    except (ValueError, IndexError):  # not covered; a hole in its Sindhi table
        return None
    for wrong, right in _SPELLINGS.get(code, {}).items():
        words = words.replace(wrong, right)
    return words if script_share(words, language(code).script) == 1.0 else None


@cache
def territories(code: str) -> dict[str, str]:
    """Return the names of countries and territories by ISO 3166 code; private codes (XA, ZZ) are left out."""
    names = _locale(code).territories.items()
    return {k: normalise(v) for k, v in names if len(k) == 2 and k.isalpha() and k[0] not in "XZ"}


@cache
def language_names(code: str) -> dict[str, str]:
    """Return the names of languages by ISO 639-1 code (two letters: the widely written ones)."""
    return {k: normalise(v) for k, v in _locale(code).languages.items() if len(k) == 2}


@cache
def india_holidays(year: int, code: str) -> dict[str, str]:
    """Return India's public holidays of a year by ISO date; empty where the language is not covered."""
    name = "en_IN" if code == "en" else code
    if name not in holidays.India.supported_languages:
        return {}
    return {
        day.isoformat(): normalise(text) for day, text in holidays.India(years=year, language=name).items()
    }
