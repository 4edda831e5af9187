"""What differs between two texts, for a reader: marks lie between graphemes, never inside one.

Reads nothing, writes nothing. A difference that cannot be seen (a joiner, another order of signs) is told by
its code points.
"""

import unicodedata
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

import regex

from data_recipes.writing.graphemes import graphemes

MAX_COMPARED_CHARACTERS = 4000
N_AROUND = 16  # pieces (words, spaces, signs) shown around a change
MAX_PIECES = 200  # shown of a text
MAX_CODE_POINTS = 12  # told of one piece
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]")
_INVISIBLE = regex.compile(r"[\p{Cc}\p{Cf}\p{Zs}--[\n\t ]]", flags=regex.V1)


@dataclass(frozen=True)
class Piece:
    """A run of a text. `code_points` is there only where the eye would see no difference."""

    kind: Literal["same", "changed", "gap"]
    text: str
    code_points: str = ""


def split_pieces(text: str) -> list[str]:
    """Return words, white space and single other graphemes; joined they are the text."""

    def kind(grapheme: str) -> str:
        return "word" if _WORD.search(grapheme) else "space" if grapheme.isspace() else grapheme

    return ["".join(group) for _, group in groupby(graphemes(text), kind)]


def text_difference(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Return both texts as pieces with what differs marked; long equal stretches are gaps.

    Texts are compared as far as they are shown: the first 4,000 characters.
    """
    old, new = (split_pieces(text[:MAX_COMPARED_CHARACTERS]) for text in (before, after))
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    left: list[Piece] = []
    right: list[Piece] = []
    for number, (tag, a, b, c, d) in enumerate(steps):
        if tag == "equal":
            run = _same(old[a:b], first=number == 0, last=number == len(steps) - 1)
            left += run
            right += run
            continue
        gone, come = "".join(old[a:b]), "".join(new[c:d])
        hidden = _looks_alike(gone, come)
        left += _changed(gone, hidden)
        right += _changed(come, hidden)
    cut = len(before) > MAX_COMPARED_CHARACTERS or len(after) > MAX_COMPARED_CHARACTERS
    return _limited(left, cut), _limited(right, cut)


def code_points(text: str) -> str:
    """Return the code points of a text as Unicode writes them: U+0928 U+093C."""
    listed = [f"U+{ord(character):04X}" for character in text[:MAX_CODE_POINTS]]
    return " ".join(listed) + (" …" if len(text) > MAX_CODE_POINTS else "")


def _same(pieces: list[str], first: bool, last: bool) -> list[Piece]:
    head, tail = (0 if first else N_AROUND), (0 if last else N_AROUND)
    if first and last:
        head = MAX_PIECES
    if len(pieces) <= head + tail + 1:
        return [Piece("same", "".join(pieces))]
    start = [Piece("same", "".join(pieces[:head]))] if head else []
    end = [Piece("same", "".join(pieces[-tail:]))] if tail else []
    return [*start, Piece("gap", " … "), *end]


def _changed(text: str, hidden: bool) -> list[Piece]:
    if not text:
        return []
    shown = split_pieces(text)
    short = text if len(shown) <= MAX_PIECES else "".join(shown[:MAX_PIECES]) + "…"
    return [Piece("changed", short, code_points(text) if hidden else "")]


def _looks_alike(one: str, other: str) -> bool:
    """Whether what differs is only invisible characters or the encoding of the same signs."""

    def seen(text: str) -> str:
        return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))

    return seen(one) == seen(other)


def _limited(pieces: list[Piece], cut: bool) -> list[Piece]:
    kept = pieces[:MAX_PIECES]
    return [*kept, Piece("gap", " … ")] if cut or len(pieces) > MAX_PIECES else kept
