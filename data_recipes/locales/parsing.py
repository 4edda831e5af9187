"""Numbers and rupees read back from an answer, so that one in either digits, or with lakh in words, counts.

Reads the tables of `tables.py`, the ones that `numbers.py` writes by; writes nothing. What is not
plainly one number is `None`: a checker must not guess in an answer's favour.
"""

from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache

import regex
from babel.numbers import get_currency_name

from data_recipes.locales.tables import (
    babel_locale,
    canonical_tag,
    digit_systems_of,
    exact,
    override,
    put_right,
    scales,
    script_of,
)
from data_recipes.text import normalise
from data_recipes.writing.digits import NUMBERING_SYSTEMS, fold_digits

MAX_CHARACTERS = 200  # a longer text is no number, and is not looked at
_PRECISE = Context(prec=2 * MAX_CHARACTERS)  # the default context would round what has more than 28 digits
_BIDI_MARKS = regex.compile("[\u200e\u200f\u061c]")
_SIGN = regex.compile("^[-\u2212] ?")
_FULL_STOP = regex.compile(r"(?<=.)[.।۔]$")
# Plain, Indian or western groups; a leading zero is no way to write a number. The group sign is one and the
# same throughout: the comma, or the Arabic separators.
_NUMERAL = regex.compile(
    r"(?P<whole>0|[1-9]\d*|[1-9]\d?(?:(?P<g>[,٬،])\d\d(?:(?P=g)\d\d)*(?P=g)|(?P<h>[,٬،]))\d{3}"
    r"|[1-9]\d{0,2}(?P<w>[,٬،])\d{3}(?:(?P=w)\d{3})*)(?:[.٫](?P<decimals>\d+))?"
)
_ARABIC_SEPARATORS = regex.compile("[٬،٫]")
_RUPEE_MARKS = (r"₹", r"Rs\.?", r"INR")


@dataclass(frozen=True)
class _Term:
    number: Decimal
    scale: int


def _cleaned(text: str) -> str:
    return _FULL_STOP.sub("", normalise(_BIDI_MARKS.sub("", text))) if len(text) <= MAX_CHARACTERS else ""


def _numeral(text: str, tag: str) -> Decimal | None:
    digits = set(regex.findall(r"\p{Nd}", text))
    if not any(digits <= set(NUMBERING_SYSTEMS[system]) for system in digit_systems_of(tag)):
        return None  # digits of another language, or of two scripts in one number
    if script_of(tag) != "Arab" and _ARABIC_SEPARATORS.search(text):
        return None
    match = _NUMERAL.fullmatch(fold_digits(text))
    if match is None:
        return None
    whole = regex.sub("[,٬،]", "", match["whole"])
    return Decimal(f"{whole}.{match['decimals']}" if match["decimals"] else whole)


@cache
def _scale_values(tag: str) -> dict[str, int]:
    words = {}
    for scale in scales(tag):
        for word in (scale.one, scale.other, *scale.also):
            words[word.lower()] = scale.value
    return words


@cache
def _term_pattern(tag: str) -> regex.Pattern[str]:
    words = sorted(_scale_values(tag), key=len, reverse=True)
    scale = rf"(?:{'|'.join(map(regex.escape, words))})(?![\p{{L}}\p{{M}}])" if words else r"(?!)"
    return regex.compile(
        rf"(?P<numeral>\p{{Nd}}[\p{{Nd}},٬،.٫]*)(?: ?(?P<scale>{scale}))* ?", regex.IGNORECASE
    )


def _terms(text: str, tag: str) -> list[_Term] | None:
    terms, position = [], 0
    while position < len(text):
        match = _term_pattern(tag).match(text, position)
        number = _numeral(match["numeral"], tag) if match else None
        if match is None or number is None:
            return None
        values = [_scale_values(tag)[normalise(word).lower()] for word in match.captures("scale")]
        if len(values) > 2 or (len(values) == 2 and values[0] >= values[1]):
            return None  # a lakh crore is one, a crore lakh is none
        scale = values[0] * values[1] if len(values) == 2 else sum(values) or 1
        terms.append(_Term(number, scale))
        position = match.end()
    return terms or None


def parse_number(text: str, tag: str) -> Decimal | None:
    """Return the number that a text is, or `None` where it is not plainly one number of the language.

    Digits are ASCII or the language's own, not mixed in one number; groups are Indian (1,87,500) or western
    (187,500); scale words are the language's: "1.87 लाख", "12 लाख 34 हज़ार 567", "2 lakh crore".

    Raises:
        UserError: an unknown tag.
    """
    tag = canonical_tag(tag)
    cleaned = _cleaned(text)
    body = _SIGN.sub("", cleaned)
    terms = _terms(body, tag)
    if terms is None:
        return None
    for before, after in zip(terms, terms[1:], strict=False):
        # Each later part counts what is left below the scale of the one before: 1 crore 20 lakh.
        if before.number != int(before.number) or after.number * after.scale >= before.scale:
            return None
    size = Decimal(0)
    for term in terms:
        size = _PRECISE.fma(term.number, Decimal(term.scale), size)
    return size.copy_negate() if body != cleaned else size


@cache
def rupee_words(tag: str) -> frozenset[str]:
    """Return the words for the rupee that are read: the noun of CLDR's names of it, and the table's own."""
    names = [get_currency_name("INR", count, babel_locale(tag)) for count in (None, 1, 2)]
    nouns = [put_right(name, tag).split()[-1].lower() for name in names]
    return frozenset([*nouns, *map(normalise, override("rupee_words", tag) or ())])


@cache
def _rupee_pattern(tag: str) -> regex.Pattern[str]:
    mark = "|".join([*_RUPEE_MARKS, *map(regex.escape, sorted(rupee_words(tag), key=len, reverse=True))])
    return regex.compile(
        rf"(?P<sign>[-\u2212]? ?)(?:(?:{mark}) ?(?P<after>.+?)|(?P<before>.+?) ?(?:{mark}))(?:/-)?",
        regex.IGNORECASE,
    )


def parse_rupees(text: str, tag: str) -> Decimal | None:
    """Return the rupees that a text names: "₹1,87,500.50", "Rs. 500/-", "१.५ करोड़ रुपये".

    One sign or word for the rupee must stand before or after the number; `None` for anything else.

    Raises:
        UserError: an unknown tag.
    """
    match = _rupee_pattern(canonical_tag(tag)).fullmatch(_cleaned(text))
    if match is None:
        return None
    return parse_number(match["sign"].strip() + (match["after"] or match["before"]), tag)


def same_number(answer: str, value: int | Decimal, tag: str) -> bool:
    """Return whether an answer is this number, in whatever digits, groups or scale words of the language."""
    return parse_number(answer, tag) == exact(value)


def same_rupees(answer: str, value: int | Decimal, tag: str) -> bool:
    """Return whether an answer is this amount in rupees, as `parse_rupees` reads it."""
    return parse_rupees(answer, tag) == exact(value)
