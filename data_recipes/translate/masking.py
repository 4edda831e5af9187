"""What the teacher sees: prose with a mark in the place of each span that must survive, and the way back.

A piece is a run of elements of a parsed text: a whole message, a paragraph, a sentence. Lines that end inside a
paragraph stay line ends for the teacher; what stands between two paragraphs is one mark on a line of its own.
Reads nothing, writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import regex

from data_recipes.translate.digits import fold, to_native
from data_recipes.translate.document import Document
from data_recipes.translate.patterns import NUMERIC, Span

Digits = Literal["keep", "native", "any"]
# Each holds {n}. The first is the least likely to stand in a text; tags and brackets are what models were
# trained to keep.
MASK_FORMS = ("⟦{n}⟧", "<x{n}/>", "[[{n}]]", "@@{n}@@")
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
    """Return the elements of a whole message: those of its blocks of prose, with "glue" between two blocks."""
    elements: list[Span] = []
    for block in document.blocks:
        if not has_prose(document, block.elements):
            continue  # what has no words becomes part of the glue
        if elements:
            elements.append(Span(elements[-1].end, block.start, "glue"))
        elements += trimmed(document, block.elements)
    # Trimming leaves gaps at both ends of a block: the glue closes them.
    for i, element in enumerate(elements):
        if element.kind == "glue":
            elements[i] = Span(elements[i - 1].end, elements[i + 1].start, "glue")
    return elements


def trimmed(document: Document, elements: Sequence[Span]) -> list[Span]:
    """Leave out what encloses a whole piece (`**...**`, `<b>...</b>`), and breaks at its ends."""
    kept = list(elements)
    while kept and kept[0].kind == "break":
        kept = kept[1:]
    while kept and kept[-1].kind == "break":
        kept = kept[:-1]
    sides = [element.side for element in kept]
    if len(kept) > 2 and sides[0] == 1 and sides[-1] == -1 and all(_depths(sides)[:-1]):
        return trimmed(document, kept[1:-1])
    two = len(kept) > 4 and kept[0].kind == kept[1].kind == kept[-1].kind == kept[-2].kind == "markup"
    if two and sides[:2] == [0, 1] and sides[-2:] == [-1, 0] and all(_depths(sides)[1:-2]):
        return trimmed(document, kept[2:-2])  # ** is two signs: one that carries the side, one that is empty
    return kept


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
    document: Document, elements: Sequence[Span], form: str, digits: Digits, script: str, framed: bool
) -> Masked:
    """Put a mark in the place of each span. Spans that touch share one, and so do the numbers of one number.

    Args:
        form: one of `unused_forms`.
        digits: "keep" masks numbers as they are, "native" masks them and gives them back in the digits of
            `script`, "any" leaves them to the teacher.
        framed: put a mark before and after all: what a teacher says outside of the two is not the translation.
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
                text = "".join(_native(document, run, i, script) for i in range(len(run)))
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
    runs: list[list[Span]] = []
    for i, element in enumerate(elements):
        alone = element.kind in ("break", "glue") or (digits == "any" and element.kind in NUMERIC)
        before = runs[-1][-1] if runs else None
        joins = before is not None and before.kind not in ("text", "break", "glue")
        joins = joins and not (digits == "any" and before is not None and before.kind in NUMERIC)
        between = document.text[element.start : element.end]
        is_link = element.kind == "text" and len(between) == 1 and between in _APART
        if is_link and joins and 0 < i < len(elements) - 1 and not alone:
            assert before is not None
            is_link = before.kind in NUMERIC and elements[i + 1].kind in NUMERIC
            if is_link:
                runs[-1].append(Span(element.start, element.end, "number"))
                continue
        if joins and not alone and element.kind != "text":
            runs[-1].append(element)
        else:
            runs.append([element])
    return runs


def _native(document: Document, run: Sequence[Span], i: int, script: str) -> str:
    text = document.text[run[i].start : run[i].end]
    return to_native(text, script) if run[i].kind in NUMERIC else text


def _side(run: Sequence[Span]) -> int:
    sides = {element.side for element in run if element.side}
    return sides.pop() if len(sides) == 1 else 0


def restore(masked: Masked, reply: str) -> str:
    """Put the spans back in the place of their marks.

    Raises: Mismatch with the check "reply" (empty), "placeholders" (a mark missing, doubled, made up or out of
        order) or "lines" (another number of lines).
    """
    if not reply.strip():
        raise Mismatch("reply", "empty")
    parts: list[str | int] = []
    cursor = 0
    for match in mark_pattern(masked.form).finditer(reply):
        parts += [reply[cursor : match.start()], int(fold(match["n"]))]
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
    glue = [n for n in numbers if masked.marks[n].glue]
    if glue != sorted(glue):
        raise Mismatch("placeholders", "paragraphs are out of order")
    return _joined(masked, parts)


def _joined(masked: Masked, parts: list[str | int]) -> str:
    """Join words and spans, block by block; the line ends of a block are those of the source."""
    blocks: list[list[str]] = [[]]
    clings = True  # white space that comes next would part a sign from its word
    for part in parts:
        if isinstance(part, str):
            blocks[-1].append(part.lstrip(" \t") if clings else part)
            clings = False
            continue
        mark = masked.marks[part]
        if mark.glue:
            blocks.append([mark.text])
            blocks.append([])
        else:
            if mark.side == -1 and blocks[-1] and not blocks[-1][-1].endswith("\n"):
                blocks[-1][-1] = blocks[-1][-1].rstrip(" \t")
            blocks[-1].append(_guarded(mark.text))
        clings = mark.side == 1
    texts = ["".join(block) for block in blocks]
    for i, breaks in enumerate(masked.breaks):
        lines = texts[2 * i].strip().split("\n")
        if len(lines) != len(breaks) + 1:
            raise Mismatch("lines", f"{len(lines)} lines, not {len(breaks) + 1}")
        ends = [*breaks, ""]
        texts[2 * i] = "".join(line.strip(" \t") + end for line, end in zip(lines, ends, strict=True))
    return "".join(texts).replace(_LINE_END_IN_SPAN, "\n")


# A line end inside a span is not one of the teacher's: it is hidden from the count of lines.
_LINE_END_IN_SPAN = "\ue000"


def _guarded(text: str) -> str:
    return text.replace("\n", _LINE_END_IN_SPAN)


def _difference(numbers: list[int], n_marks: int) -> str:
    counted = Counter(numbers)
    lost = [n for n in range(n_marks) if not counted[n]]
    doubled = [n for n, count in counted.items() if count > 1 and n < n_marks]
    made_up = [n for n in counted if n >= n_marks]
    found = {"lost": lost, "doubled": doubled, "made up": made_up}
    return ", ".join(f"{name} {values}" for name, values in found.items() if values)
