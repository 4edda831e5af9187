"""Code-mixed text: English words among those of another language, and how much a text is mixed.

Reads and writes nothing. The grammar stays that of the language: only what stands in a glossary, as a whole
word or words, becomes English, so that no ending is ever cut off.
"""

from __future__ import annotations

from collections.abc import Mapping

import regex

_WORDS = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d]*")
_LATIN = regex.compile(r"\p{Script=Latin}")


def term_pattern(own_words: Mapping[str, str]) -> regex.Pattern[str]:
    """Return the pattern of whole words of a glossary (own -> English), longer terms first."""
    terms = sorted(own_words, key=lambda term: (-len(term), term))
    inside = r"[\p{L}\p{M}\p{N}\u200c\u200d]"
    return regex.compile(rf"(?<!{inside})(?:{'|'.join(map(regex.escape, terms))})(?!{inside})")


def mix(text: str, own_words: Mapping[str, str], pattern: regex.Pattern[str]) -> tuple[str, int]:
    """Return a text with the glossary's words in English, and how many there were."""
    return pattern.subn(lambda match: own_words[match.group()], text)


def word_counts(text: str) -> tuple[int, int]:
    """Return how many words of a text are in Latin letters, and how many in others."""
    words = _WORDS.findall(text)
    n_latin = sum(bool(_LATIN.match(word)) for word in words)
    return n_latin, len(words) - n_latin


def mixing_index(n_latin: int, n_other: int) -> float:
    """Return the code-mixing index of a text, 0 (one language) to 50 (two halves).

    100 (1 - max(w) / n) over words by language, here told by their script: Das and Gambäck 2014, "Identifying
    languages at the word level in code-mixed Indian social media text", ICON.
    """
    n = n_latin + n_other
    return 100.0 * (1 - max(n_latin, n_other) / n) if n else 0.0
