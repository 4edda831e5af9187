"""What the teacher sees: prose with a mark in the place of each span that must survive, and the way back.

A piece is a run of elements of a parsed text: a whole message, a paragraph, a sentence. Line ends inside a
paragraph stay line ends for the teacher; what stands between two paragraphs is one mark on its own line.
Reads nothing, writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import regex

from data_recipes.translate.document import Document
from data_recipes.translate.patterns import NUMERIC, Span
from data_recipes.writing.digits import fold_digits, write_digits

Digits = Literal["keep", "native", "any"]
# Each holds {n}. The first is the least likely to stand in a text; tags and brackets are what models were
# trained to keep.
MASK_FORMS = ("⟦{n}⟧", "<x{n}/>", "[[{n}]]", "@@{n}@@")
_LINE_END = regex.compile(r"[ \t]*\r?\n[ \t]*")
_LETTER = regex.compile(r"\p{L}")
_SENTENCE_END = regex.compile(r"""[.!?।॥؟۔][\])"'’”»*_]*\s+""")
_APART = frozenset(" -–—\u00a0\u202f")  # between two numbers that are one: +91 98765 43210, 10-12


class Mismatch(Exception):
    """A reply that cannot be accepted: the name of the check that says so, and what it found."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check, self.detail = check, detail


@dataclass(frozen=True)
class Mark:
    """What one mark stands for. `side` is +1 for an opening sign, which clings to the word after it."""

    text: str
    glue: bool = False  # between two blocks: marks of this sort keep their order
    side: int = 0


@dataclass(frozen=True)
class Masked:
    """A piece as the teacher sees it. `breaks` holds the line ends of each block between two glue marks."""

    shown: str
    form: str
    marks: tuple[Mark, ...]
    breaks: tuple[tuple[str, ...], ...]
    framed: bool


def has_prose(document: Document, elements: Sequence[Span]) -> bool:
    """Return whether there is a letter to translate in these elements."""
    return any(e.kind == "text" and _LETTER.search(document.text, e.start, e.end) for e in elements)


def message_elements(document: Document) -> list[Span]:
    """Return the elements of a message: those of its blocks of prose, with "glue" between two of them."""
    elements: list[Span] = []
    for block in document.blocks:
        if not has_prose(document, block.elements):
            continue  # what has no words becomes part of the glue
        if elements:
            elements.append(Span(elements[-1].end, block.start, "glue"))
        elements += trimmed(document, block.elements)
    # Trimming leaves gaps at both ends of a block: the glue takes them in.
    for i, element in enumerate(elements):
        if element.kind == "glue":
            elements[i] = Span(elements[i - 1].end, elements[i + 1].start, "glue")
    return elements


def trimmed(document: Document, elements: Sequence[Span]) -> list[Span]:
    """Leave out white space at both ends, and signs that enclose the whole: `**...**`, `<b>...</b>`."""
    kept = list(elements)
    while True:
        while kept and (kept[0].kind == "break" or _stripped(document, kept[0]) is None):
            del kept[0]
        while kept and (kept[-1].kind == "break" or _stripped(document, kept[-1]) is None):
            del kept[-1]
        if not kept:
            return kept
        sides = [element.side for element in kept]
        if not (len(kept) > 2 and sides[0] == 1 and sides[-1] == -1 and all(_depths(sides)[:-1])):
            break
        kept = kept[1:-1]
    first, last = _stripped(document, kept[0]), _stripped(document, kept[-1])
    assert first is not None and last is not None
    if len(kept) == 1:
        return [Span(first.start, last.end, first.kind, first.side)]
    start, end = (
        Span(first.start, kept[0].end, first.kind, first.side),
        Span(kept[-1].start, last.end, last.kind, last.side),
    )
    return [start, *kept[1:-1], end]


def _stripped(document: Document, element: Span) -> Span | None:
    """A text without white space at its ends, None when nothing is left; any other element as it is."""
    if element.kind != "text":
        return element
    text = document.text[element.start : element.end]
    start = element.start + len(text) - len(text.lstrip())
    return Span(start, start + len(text.strip()), "text") if text.strip() else None


def _depths(sides: Sequence[int]) -> list[int]:
    depths, depth = [], 0
    for side in sides:
        depth += side
        depths.append(depth)
    return depths


def sentences(document: Document, elements: Sequence[Span]) -> list[list[Span]]:
    """Cut a block's elements after each sentence that ends outside of emphasis, links and tags."""
    pieces: list[list[Span]] = [[]]
    depth = 0
    for element in elements:
        depth += element.side
        if element.kind == "break" and depth == 0 and _ends_sentence(document, pieces[-1]):
            pieces.append([])
            continue
        start = element.start
        if element.kind == "text" and depth == 0:
            for match in _SENTENCE_END.finditer(document.text, element.start, element.end):
                pieces[-1].append(Span(start, match.end(), "text"))
                pieces.append([])
                start = match.end()
        if start < element.end:
            pieces[-1].append(Span(start, element.end, element.kind, element.side))
    return [trimmed(document, piece) for piece in pieces if has_prose(document, piece)]


def _ends_sentence(document: Document, piece: list[Span]) -> bool:
    last = document.text[piece[-1].start : piece[-1].end] if piece and piece[-1].kind == "text" else ""
    return bool(_SENTENCE_END.search(last + " "))


@cache
def mark_pattern(form: str) -> regex.Pattern[str]:
    """Return the pattern of a form's marks, with the white space and native digits teachers put into them."""
    before, after = form.split("{n}")
    spaced = [r"\s*".join(regex.escape(c) for c in side) for side in (before, after)]
    return regex.compile(rf"{spaced[0]}\s*(?P<n>\p{{Nd}}{{1,4}})\s*{spaced[1]}", regex.IGNORECASE)


def unused_forms(text: str, forms: Sequence[str]) -> list[str]:
    """Return the forms no mark of which stands in the text already."""
    return [form for form in forms if not mark_pattern(form).search(text)]


def mask(
    document: Document, elements: Sequence[Span], form: str, digits: Digits, system: str, framed: bool
) -> Masked:
    """Put a mark in the place of each span. Spans that touch share one, and so do the numbers of one number.

    Args:
        form: one of `unused_forms`.
        digits: "keep" masks numbers as they are, "native" masks them and gives them back in the digits of
            `system` (CLDR's name), "any" leaves them to the teacher.
        framed: put a mark before and after all: words outside of the two are not the translation.
    """
    shown: list[str] = []
    marks: list[Mark] = [Mark("")] if framed else []
    breaks: list[list[str]] = [[]]
    runs = _runs(document, elements, digits)
    for run in runs:
        text = document.text[run[0].start : run[-1].end]
        kind = run[0].kind
        if kind == "text" or (digits == "any" and all(e.kind in NUMERIC for e in run)):
            shown.append(text)
        elif kind == "break":
            breaks[-1].append(text)
            shown.append("\n")
        else:
            if digits == "native":
                text = "".join(_native(document, run, i, system) for i in range(len(run)))
            mark = form.replace("{n}", str(len(marks)))
            shown.append(f"\n{mark}\n" if kind == "glue" else mark)
            marks.append(Mark(text, kind == "glue", _side(run)))
            if kind == "glue":
                breaks.append([])
    joined = "".join(shown)
    if framed:
        marks.append(Mark(""))
        joined = f"{form.replace('{n}', '0')}{joined}{form.replace('{n}', str(len(marks) - 1))}"
    return Masked(joined, form, tuple(marks), tuple(map(tuple, breaks)), framed)


def _runs(document: Document, elements: Sequence[Span], digits: Digits) -> list[list[Span]]:
    """Group the elements: spans that touch, and numbers with one space or dash between them, go together."""

    def numeric(element: Span) -> bool:
        return element.kind in NUMERIC

    def masked(element: Span) -> bool:
        seen = element.kind in ("text", "break", "glue")
        return not seen and not (digits == "any" and numeric(element))

    runs: list[list[Span]] = []
    for i, element in enumerate(elements):
        joins = bool(runs) and masked(runs[-1][-1])
        between_numbers = (
            joins and numeric(runs[-1][-1]) and i + 1 < len(elements) and numeric(elements[i + 1])
        )
        if between_numbers and document.text[element.start : element.end] in _APART:
            runs[-1].append(Span(element.start, element.end, "number"))
        elif joins and masked(element):
            runs[-1].append(element)
        else:
            runs.append([element])
    return runs


def _native(document: Document, run: Sequence[Span], i: int, system: str) -> str:
    text = document.text[run[i].start : run[i].end]
    return write_digits(text, system) if run[i].kind in NUMERIC else text


def _side(run: Sequence[Span]) -> int:
    sides = {element.side for element in run if element.side}
    return sides.pop() if len(sides) == 1 else 0


def restore(masked: Masked, reply: str) -> str:
    """Put the spans back in the place of their marks.

    Raises: Mismatch with the check "reply" (empty), "placeholders" (a mark missing, doubled, made up or out
        of order), "chatter" (words outside of the frame) or "lines" (another number of lines).
    """
    if not reply.strip():
        raise Mismatch("reply", "empty")
    parts: list[str | int] = []
    cursor = 0
    for match in mark_pattern(masked.form).finditer(reply):
        parts += [reply[cursor : match.start()], int(fold_digits(match["n"]))]
        cursor = match.end()
    parts.append(reply[cursor:])
    numbers = [part for part in parts if isinstance(part, int)]
    if sorted(numbers) != list(range(len(masked.marks))):
        raise Mismatch("placeholders", _difference(numbers, len(masked.marks)))
    if masked.framed:
        if numbers[0] != 0 or numbers[-1] != len(masked.marks) - 1:
            raise Mismatch("placeholders", "the first or the last mark is not where it was")
        if str(parts[0]).strip() or str(parts[-1]).strip():
            raise Mismatch("chatter", "words outside of the first and the last mark")
        parts = parts[2:-2]
    if any(numbers.index(closing) < numbers.index(opening) for opening, closing in _pairs(masked.marks)):
        # Two signs of ** that changed places would still be markup, around other words.
        raise Mismatch("placeholders", "a closing sign stands before its opening one")
    glue = [n for n in numbers if masked.marks[n].glue]
    if glue != sorted(glue):
        raise Mismatch("placeholders", "paragraphs are out of order")
    return _joined(masked, parts)


def _pairs(marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """The numbers of each opening mark and the one that closes it."""
    opened: list[int] = []
    pairs: list[tuple[int, int]] = []
    for number, mark in enumerate(marks):
        if mark.side == 1:
            opened.append(number)
        elif mark.side == -1 and opened:
            pairs.append((opened.pop(), number))
    return pairs


def _joined(masked: Masked, parts: list[str | int]) -> str:
    """Join words and spans, which take turns; the line ends of a block are those of the source."""
    edge = Mark("", glue=True)  # nothing is kept of white space beside it
    written: list[str] = []
    n_lines, block = 1, 0
    for i, part in enumerate([*parts, len(masked.marks)]):
        if isinstance(part, str):
            before = masked.marks[int(parts[i - 1])] if i else edge
            after = masked.marks[int(parts[i + 1])] if i + 1 < len(parts) else edge
            # A sign clings to its word: `** word**` is no emphasis.
            text = part.lstrip() if before.glue else part.lstrip(" \t") if before.side == 1 else part
            text = text.rstrip() if after.glue else text.rstrip(" \t") if after.side == -1 else text
            for n_before, line in enumerate(_LINE_END.split(text)):
                n_lines += n_before > 0
                ends = masked.breaks[block]
                written += [ends[n_lines - 2] if n_before and n_lines - 2 < len(ends) else "", line]
            continue
        mark = masked.marks[part] if part < len(masked.marks) else edge
        written.append(mark.text)
        if mark.glue:
            if n_lines != len(masked.breaks[block]) + 1:
                raise Mismatch("lines", f"{n_lines} lines, not {len(masked.breaks[block]) + 1}")
            n_lines, block = 1, block + 1
    return "".join(written)


def _difference(numbers: list[int], n_marks: int) -> str:
    counted = Counter(numbers)
    lost = [n for n in range(n_marks) if not counted[n]]
    doubled = [n for n, count in counted.items() if count > 1 and n < n_marks]
    made_up = [n for n in counted if n >= n_marks]
    found = {"lost": lost, "doubled": doubled, "made up": made_up}
    return ", ".join(f"{name} {values}" for name, values in found.items() if values)
