"""Is an answer in the script, and in the language, that was asked for: by line and by word.

Reads the written forms of `data_recipes`; writes nothing. Script first: it is certain. The language is told
by the script where no other language of ours is mainly written in it; for the others (Devanagari, Bengali and
Arabic letters, all romanised text) there is no identifier here: `language_basis` says "script check only".
"""

from collections.abc import Collection
from typing import NamedTuple

import regex

from data_recipes.text import script_share
from data_recipes.writing.graphemes import words
from data_recipes.writing.written_forms import forms, written_form

BY_SCRIPT, SCRIPT_ONLY = "the script tells the language", "script check only"
_LETTER = regex.compile(r"\p{L}")


class Fidelity(NamedTuple):
    """How many of an answer's lines and words are right; both counts are at least 1."""

    lines_right: int
    lines: int
    words_right: int
    words: int


def script_fidelity(answer: str, script: str, allowed: Collection[str] = ()) -> Fidelity:
    """Count the lines and words of an answer that are in a script (ISO 15924).

    A word is right when all its letters are of the script; signs that scripts share, digits and punctuation
    do not matter, and a word without letters is none. A line is right when more than half of its words are.

    Args:
        allowed: words that are right as they are, such as those of the expected answer (GST, km).

    Returns:
        An answer without letters counts as one wrong line and one wrong word: it is not in the script.
    """
    lines = [[word for word in words(line) if _LETTER.search(word)] for line in answer.splitlines()]
    right = [
        [word in allowed or script_share(word, script) == 1.0 for word in line] for line in lines if line
    ]
    if not right:
        return Fidelity(0, 1, 0, 1)
    lines_right = sum(2 * sum(line) > len(line) for line in right)
    return Fidelity(lines_right, len(right), sum(map(sum, right)), sum(map(len, right)))


def language_basis(tag: str) -> str:
    """Return how the language of a text in a written form can be told here: BY_SCRIPT or SCRIPT_ONLY.

    Raises:
        UserError: an unknown form.
    """
    form = written_form(tag)
    if form.script == "Latn":
        return SCRIPT_ONLY  # any romanised text is in it, and most of the world's languages
    mainly = {other.code for other in forms().values() if other.use == "main" and other.script == form.script}
    return BY_SCRIPT if mainly == {form.code} else SCRIPT_ONLY
