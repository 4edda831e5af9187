"""Numbers in the digits of any script: folded to ASCII to be compared, written in native digits when asked.

Reads nothing, writes nothing.
"""

from __future__ import annotations

import unicodedata

import regex

_DIGIT = regex.compile(r"\p{Nd}")
_SIGNS = str.maketrans({"٬": ",", "٫": ".", "٪": "%", "−": "-"})
_NUMBER = regex.compile(
    r"(?<![\p{L}\p{M}\p{N})\]])[-−]?\p{Nd}+(?:[.,٬٫]\p{Nd}+)*|\p{Nd}+(?:[.,٬٫]\p{Nd}+)*|\p{No}"
)

# The digit zero of each script (ISO 15924); Urdu, Sindhi and Kashmiri use the extended Arabic digits.
ZERO = {
    "Arab": "۰",
    "Beng": "০",
    "Deva": "०",
    "Gujr": "૦",
    "Guru": "੦",
    "Knda": "೦",
    "Latn": "0",
    "Mlym": "൦",
    "Mtei": "꯰",
    "Olck": "᱐",
    "Orya": "୦",
    "Taml": "௦",
    "Telu": "౦",
}


def fold(text: str) -> str:
    """Return text with ASCII digits and ASCII number signs, one for one, so that offsets stay."""
    folded = _DIGIT.sub(lambda match: str(unicodedata.decimal(match.group(), match.group())), text)
    return folded.translate(_SIGNS)


def to_native(text: str, script: str) -> str:
    """Return text with its digits in those of a script; separators and signs stay as they are."""
    zero = ord(ZERO[script])
    return _DIGIT.sub(lambda match: chr(zero + int(unicodedata.decimal(match.group(), 0))), text)


def numbers(text: str) -> list[str]:
    """Return the numbers of a text in order, folded: sign, digits, separators. Grouping is not undone."""
    return [fold(match.group()) for match in _NUMBER.finditer(text)]
