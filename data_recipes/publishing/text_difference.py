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

MAX_READ_CHARACTERS = 5_000
MAX_COMPARED_PIECES = 100  # words, spaces, signs; the matcher's worst case is cubic
N_AROUND = 16  # pieces shown around a change
MAX_CODE_POINTS = 12  # told of one piece
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]")
_INVISIBLE = regex.compile(r"[\p{Cc}\p{Cf}\p{Zs}--[\n\t ]]", flags=regex.V1)


@dataclass(frozen=True)
class Piece:
    """A run of a text. `code_points` is there only where the eye would see no difference."""

    kind: Literal["same", "changed", "gap"]
    text: str
    code_points: str = ""


GAP = Piece("gap", " … ")


def split_pieces(text: str) -> list[str]:
    """Return words, white space and single other graphemes; joined they are the text."""

    def kind(grapheme: str) -> str:
        return "word" if _WORD.search(grapheme) else "space" if grapheme.isspace() else grapheme

    return ["".join(group) for _, group in groupby(graphemes(text), kind)]


def text_difference(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Return both texts as pieces with what differs marked; long equal stretches are gaps.

    Texts are compared as far as they are shown: of a stretch that begins and ends with a change, the first
    100 pieces.
    """
    old, new = (split_pieces(text[:MAX_READ_CHARACTERS]) for text in (before, after))
    cut = max(len(before), len(after)) > MAX_READ_CHARACTERS
    n_head = _n_alike(old, new)
    n_tail = 0 if cut else _n_alike(old[n_head:][::-1], new[n_head:][::-1])
    head, tail = old[:n_head], old[len(old) - n_tail :]
    old, new = (pieces[n_head : len(pieces) - n_tail] for pieces in (old, new))
    if max(len(old), len(new)) > MAX_COMPARED_PIECES:
        old, new, tail, cut = old[:MAX_COMPARED_PIECES], new[:MAX_COMPARED_PIECES], [], True
    left, right = _compared(old, new)
    around = _end_of(head), [GAP] if cut else _start_of(tail)
    return [*around[0], *left, *around[1]], [*around[0], *right, *around[1]]


def code_points(text: str) -> str:
    """Return the code points of a text as Unicode writes them: U+0928 U+093C."""
    listed = [f"U+{ord(character):04X}" for character in text[:MAX_CODE_POINTS]]
    return " ".join(listed) + (" …" if len(text) > MAX_CODE_POINTS else "")


def _compared(old: list[str], new: list[str]) -> tuple[list[Piece], list[Piece]]:
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = "".join(old[a:b]), "".join(new[c:d])
        if tag == "equal":
            run = [Piece("same", gone)]
            if b - a > 2 * N_AROUND:
                run = [*_start_of(old[a:b]), *_end_of(old[a:b])[1:]]
            left += run
            right += run
            continue
        hidden = _looks_alike(gone, come)
        left += _changed(gone, hidden)
        right += _changed(come, hidden)
    return left, right


def _n_alike(one: list[str], other: list[str]) -> int:
    """How many pieces are the same from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _start_of(pieces: list[str]) -> list[Piece]:
    if len(pieces) <= N_AROUND:
        return [Piece("same", "".join(pieces))] if pieces else []
    return [Piece("same", "".join(pieces[:N_AROUND])), GAP]


def _end_of(pieces: list[str]) -> list[Piece]:
    if len(pieces) <= N_AROUND:
        return [Piece("same", "".join(pieces))] if pieces else []
    return [GAP, Piece("same", "".join(pieces[-N_AROUND:]))]


def _changed(text: str, hidden: bool) -> list[Piece]:
    return [Piece("changed", text, code_points(text) if hidden else "")] if text else []


def _looks_alike(one: str, other: str) -> bool:
    """Whether what differs is only invisible characters or the encoding of the same signs."""

    def seen(text: str) -> str:
        return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))

    return seen(one) == seen(other)
