"""Words near a number that say what it is: a passport, a phone, an amount of money.

Reads `tables.yaml` beside it; writes nothing. Words are looked up without regard to case and joiners.
"""

from functools import cache
from pathlib import Path
from typing import Any

import regex
import yaml

from data_recipes.text import normalise

TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
BEFORE, AFTER = 60, 30  # characters of the text that are searched


def has_context(kind: str, text: str, start: int, end: int) -> bool:
    """Whether a word that belongs to a kind stands near `text[start:end]`."""
    pattern = _kind_pattern(kind)
    return any(
        pattern.search(_key(part)) for part in (text[max(0, start - BEFORE) : start], text[end : end + AFTER])
    )


def is_amount(text: str, start: int, end: int) -> bool:
    """Whether a currency, or the letters ISBN, stands directly before or after `text[start:end]`."""
    before, after = _currency_patterns()
    return bool(
        before.search(_key(text[max(0, start - 12) : start])) or after.match(_key(text[end : end + 12]))
    )


@cache
def _kind_pattern(kind: str) -> regex.Pattern[str]:
    return regex.compile(_any_of(TABLES["context"][kind]))


@cache
def _currency_patterns() -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    words = _any_of(TABLES["currency"])
    before = regex.compile(rf"(?:\p{{Sc}}|isbn|{words})[\s.:/-]*$")
    # "98765 43210 Rs. 500": there the currency belongs to what follows it.
    return before, regex.compile(rf"\s?(?:\p{{Sc}}|/-|{words})(?![\s.:]*\p{{Nd}})")


def _any_of(words: list[str]) -> str:
    # A Latin word must end where it ends ("pan" is not in "company" or "panel"); Indic ones take endings.
    keys = sorted({_key(word) for word in words}, key=len, reverse=True)
    ended = [regex.escape(key) + (r"(?![a-z])" if key.isascii() else "") for key in keys]
    return rf"(?<![\p{{L}}\p{{M}}])(?:{'|'.join(ended)})"


def _key(text: str) -> str:
    return normalise(regex.sub("[\u200c\u200d]", "", text)).casefold()
