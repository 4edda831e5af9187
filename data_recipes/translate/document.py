"""A Markdown text as blocks of prose, spans that must survive, and a shape that must stay the same.

The parser is markdown-it-py, see `inline.py`. What is in no block (code, list markers, the lines of a table)
is never touched. Reads nothing, writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import regex
from markdown_it.token import Token

from data_recipes.translate.inline import TAG_NAME, html_parser, markdown_parser, tag_side
from data_recipes.translate.patterns import NUMERIC, Span

Shape = tuple[Any, ...]
MAX_DEPTH = 60  # tags inside of tags; deeper ones are compared as a list
_LINE_END = regex.compile(r"\r\n?|\n")
# CommonMark's HTML blocks of types 1 to 5: script and the like, comments, declarations. No prose in them.
_HTML_KEPT = regex.compile(r"\s*<(?:(?i:script|pre|style|textarea)(?=[\s>]|$)|!|\?)")


@dataclass(frozen=True)
class Block:
    """A paragraph, heading or table cell: elements without gaps, each "text", "break" or a span's kind."""

    elements: tuple[Span, ...]
    shape: Shape

    @property
    def start(self) -> int:
        """Where the block begins in its text."""
        return self.elements[0].start

    @property
    def end(self) -> int:
        """Where the block ends in its text."""
        return self.elements[-1].end


@dataclass(frozen=True)
class Document:
    """A parsed text. `outline` is everything but the inside of the blocks; two outlines can be compared."""

    text: str
    blocks: tuple[Block, ...]
    outline: Shape

    def prose(self, block: Block) -> str:
        """The words of a block without what is protected."""
        return " ".join(self.text[e.start : e.end] for e in block.elements if e.kind == "text")

    def spans(self, block: Block) -> list[tuple[str, str]]:
        """Kind and bytes of each protected span of a block, in order."""
        return [
            (e.kind, self.text[e.start : e.end]) for e in block.elements if e.kind not in ("text", "break")
        ]


@dataclass
class _Source:
    text: str
    lines: list[tuple[int, int]]  # start and end of each, without its line end
    cell_ends: dict[int, int]  # line of a table -> where the last cell found in it ended


def parse(text: str) -> Document:
    """Read a Markdown text (CommonMark with tables and strike-through; any line ends)."""
    environment: dict[str, Any] = {}
    source = _Source(text, _lines(text), {})
    blocks: list[Block] = []
    outline: list[Any] = []
    tokens = markdown_parser().parse(text, environment)
    references = environment.get("references", {})
    for before, token in zip([None, *tokens], tokens, strict=False):
        is_html = token.type == "html_block" and not _HTML_KEPT.match(token.content)
        if not is_html and token.type != "inline":
            outline.append(_block_shape(token))
            continue
        in_cell = before is not None and before.type in ("th_open", "td_open")
        content, places = _located(token, source, in_cell) if token.content.strip() else ("", [])
        # An inline that could not be found in its lines is left as it is, and must stay so.
        outline.append((token.type, "" if content else token.content))
        if content:
            elements, shape = _inline(content, is_html, references)
            blocks.append(Block(_in_source(elements, places), shape))
    outline.append(("references", sorted((name, str(place["href"])) for name, place in references.items())))
    return Document(text, tuple(blocks), tuple(outline))


def _lines(text: str) -> list[tuple[int, int]]:
    """Start and end of each line, cut where markdown-it cuts."""
    lines, start = [], 0
    for match in _LINE_END.finditer(text):
        lines.append((start, match.start()))
        start = match.end()
    return [*lines, (start, len(text))]


def _block_shape(token: Token) -> Shape:
    attributes = tuple(sorted((name, str(value)) for name, value in token.attrs.items()))
    content = token.content if token.nesting == 0 else ""
    return (token.type, token.tag, token.markup, token.info, token.hidden, attributes, content)


def _located(token: Token, source: _Source, in_cell: bool) -> tuple[str, list[tuple[int, int]]]:
    """The content of a block as it stands in the source, and where each of its lines begins, there and here.

    A line of a paragraph is its source line without what stands before it (`> `, indentation). ("", []) where
    a line is not found: a tab that was cut in two by an indentation.
    """
    assert token.map is not None
    places: list[tuple[int, int]] = []
    kept: list[str] = []
    for number, line in enumerate(token.content.rstrip("\n").split("\n"), start=token.map[0]):
        start, end = source.lines[number]
        written = source.text[start:end]
        body, line = line.strip(" \t"), line.lstrip(" \t")
        if in_cell:
            cursor = source.cell_ends.get(number, 0)
            if written.find(body, cursor) < 0:  # markdown-it has taken the backslash from \\|
                body = line = body.replace("|", "\\|")
            at = written.find(body, cursor)
            source.cell_ends[number] = at + len(body)
        elif written.rstrip(" \t").endswith(body):
            at = len(written.rstrip(" \t")) - len(body)
        else:
            at = written.find(body)  # a heading closed by ##
        if at < 0:
            return "", []
        places.append((sum(len(line) + 1 for line in kept), start + at))
        kept.append(line)
    return "\n".join(kept), places


def _in_source(elements: list[Span], places: list[tuple[int, int]]) -> tuple[Span, ...]:
    """Move spans of a block's content to where they stand in the text."""

    def moved(offset: int, as_end: bool) -> int:
        # Where a line begins the one before has ended: a break ends there, everything else starts there.
        there, here = next(p for p in reversed(places) if p[0] < offset + (not as_end) or p[0] == 0)
        return offset - there + here

    return tuple(
        Span(moved(e.start, False), moved(e.end, e.kind != "break"), e.kind, e.side) for e in elements
    )


def _inline(content: str, html_only: bool, references: dict[str, Any]) -> tuple[list[Span], Shape]:
    """Cut a block's content into text, breaks and protected spans, and give its shape."""
    found: list[Span] = []
    environment = {"references": references, "spans": found, "known": {}}
    parser = html_parser() if html_only else markdown_parser()
    tokens = parser.inline.parse(content, parser, environment, [])
    for token in tokens:
        if "at" in token.meta and token.nesting:  # an emphasis sign that found its partner
            start, end = token.meta["at"]
            # Of ** markdown-it makes one token of the inner sign and empties the outer one.
            outer = 1 if token.type.startswith("strong") else 0
            found.append(
                Span(
                    start - outer * (token.nesting == 1),
                    end + outer * (token.nesting == -1),
                    "markup",
                    token.nesting,
                )
            )
    elements: list[Span] = []
    cursor = 0
    for span in sorted(found, key=lambda span: (span.start, -span.end)):
        if span.start < cursor:
            continue  # inside a span that is kept whole
        if span.start > cursor:
            elements.append(Span(cursor, span.start, "text"))
        elements.append(span)
        cursor = span.end
    if cursor < len(content):
        elements.append(Span(cursor, len(content), "text"))
    return elements, _inline_shape(tokens)


def _inline_shape(tokens: list[Token]) -> Shape:
    """The tree of inline markup without the words; siblings may change places, for languages order words."""
    stack: list[tuple[Any, list[Any]]] = [(("root",), [])]

    def close(name: Any) -> None:
        if len(stack) > 1 and stack[-1][0][0] == name:
            head, children = stack.pop()
            stack[-1][1].append((head, _unordered(children)))
        else:
            stack[-1][1].append((("stray", name), ()))

    for token in tokens:
        if token.type == "text" or (token.type == "protected" and token.info in NUMERIC):
            continue
        if token.type == "html_inline" or (token.type == "protected" and token.info == "tag"):
            name, side = TAG_NAME.match(token.content), tag_side(token.content)
            label = name.group(1).lower() if name else token.content
            if side == -1:
                close(f"<{label}")
            elif side == 0:
                stack[-1][1].append(((f"<{label}", token.content), ()))
            elif len(stack) > MAX_DEPTH:
                stack[-1][1].append((("deep", token.content), ()))
            else:
                stack.append(((f"<{label}", token.content), []))
        elif token.nesting == 1:
            attributes = tuple(sorted((key, str(value)) for key, value in token.attrs.items()))
            stack.append(((token.tag, token.markup, attributes), []))
        elif token.nesting == -1:
            close(token.tag)
        else:
            attributes = tuple(sorted((key, str(value)) for key, value in token.attrs.items()))
            stack[-1][1].append(((token.type, token.content, attributes), ()))
    while len(stack) > 1:  # never closed
        head, children = stack.pop()
        stack[-1][1].extend([(("unclosed", *head), ()), *children])
    return _unordered(stack[0][1])


def _unordered(children: list[Any]) -> Shape:
    return tuple(sorted(children, key=repr))


def kept_spans(text: str) -> list[tuple[int, int]]:
    """Return where a text must stay byte for byte: code, links, placeholders, tags; not its numbers."""
    kept, cursor = [], 0
    document = parse(text)
    for start, end in [*((block.start, block.end) for block in document.blocks), (len(text), len(text))]:
        between = text[cursor:start]
        if between.strip():  # the white space around it belongs to the policy, as line ends do
            first = cursor + len(between) - len(between.lstrip())
            kept.append((first, first + len(between.strip())))
        cursor = end
    changed = {"text", "break", "markup", *NUMERIC}
    elements = (element for block in document.blocks for element in block.elements)
    kept += [(element.start, element.end) for element in elements if element.kind not in changed]
    return sorted(kept)
