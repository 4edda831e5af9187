"""Decimal digits of every script: folded to ASCII one for one, or written in a script's own.

Reads nothing, writes nothing. The digits are all of Unicode's category Nd as `regex` knows it, which is newer
than the standard library's. Each fold replaces one code point by one, so that offsets into the text stay.
"""

import unicodedata
from functools import cache

import regex

from data_recipes.artefact import UserError

ASCII_DIGITS = "0123456789"
_NATIVE_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", flags=regex.V1)
# CLDR's names of numbering systems (supplemental/numberingSystems) and how Unicode names their digits.
_NAMES = {
    "arab": "ARABIC-INDIC",
    "arabext": "EXTENDED ARABIC-INDIC",
    "beng": "BENGALI",
    "deva": "DEVANAGARI",
    "gujr": "GUJARATI",
    "guru": "GURMUKHI",
    "knda": "KANNADA",
    "mlym": "MALAYALAM",
    "mtei": "MEETEI MAYEK",
    "olck": "OL CHIKI",
    "orya": "ORIYA",
    "takr": "TAKRI",
    "tamldec": "TAMIL",  # "taml" is Tamil's old system of signs for 10, 100 and 1,000: no decimal digits
    "telu": "TELUGU",
    "tirh": "TIRHUTA",
}


def _digits_from(zero: str) -> str:
    return "".join(chr(ord(zero) + value) for value in range(10))


NUMBERING_SYSTEMS: dict[str, str] = {"latn": ASCII_DIGITS} | {
    name: _digits_from(unicodedata.lookup(f"{unicode_name} DIGIT ZERO"))
    for name, unicode_name in _NAMES.items()
}


@cache
def _digits() -> tuple[int, ...]:
    # Plane by plane: all of Unicode in one text took 100 MB. Nd comes in runs of ten from zero to nine:
    # Unicode's stability policy.
    planes = ("".join(map(chr, range(start, start + 0x10000))) for start in range(0, 0x110000, 0x10000))
    found = tuple(ord(digit) for plane in planes for digit in regex.findall(r"\p{Nd}", plane))
    assert all(digit == found[i - i % 10] + i % 10 for i, digit in enumerate(found))
    return found


@cache
def _table(system: str) -> dict[int, str]:
    return {digit: NUMBERING_SYSTEMS[system][i % 10] for i, digit in enumerate(_digits())}


def fold_digits(text: str) -> str:
    """Return text with the digits of every script as ASCII digits, one for one, so that offsets stay."""
    # Most texts have none, and a set is looked for in an eighth of the time that the table takes.
    return text.translate(_table("latn")) if not text.isascii() and _NATIVE_DIGIT.search(text) else text


def write_digits(text: str, system: str) -> str:
    """Return text with the digits of every script in those of one numbering system, one for one.

    Numbers inside code, links and placeholders change too: keeping those is up to the caller.

    Args:
        system: CLDR's name of a numbering system: "deva", "tamldec", "latn".

    Raises:
        UserError: an unknown numbering system.
    """
    if system not in NUMBERING_SYSTEMS:
        raise UserError(
            f"unknown numbering system {system!r}: known are {', '.join(sorted(NUMBERING_SYSTEMS))}"
        )
    return text.translate(_table(system))


def digit_systems(text: str) -> dict[str, int]:
    """Return how many digits of each known numbering system a text has; digits of others count as "other"."""
    counts: dict[str, int] = {}
    for digit in regex.findall(r"\p{Nd}", text):
        system = next((name for name, own in NUMBERING_SYSTEMS.items() if digit in own), "other")
        counts[system] = counts.get(system, 0) + 1
    return counts
