"""Markdown's parser with two things added: where each inline rule matched, and spans of our own.

markdown-it-py reports no positions inside a paragraph, so its inline rules are wrapped by ones that note
them in the environment (`env["spans"]`). Two rules of our own keep what `patterns.py` knows, inside a
paragraph and as whole lines. Reads nothing, writes nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import cache

import regex
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from data_recipes.translate.patterns import Span, next_protected, protected_block

TAG_NAME = regex.compile(r"</?([^\s/>]+)")
# HTML's void elements are never closed.
VOID = frozenset(
    "area base br col embed hr img input link meta param source track wbr".split()  # noqa: SIM905
)
Rule = Callable[[StateInline, bool], bool]


@cache
def markdown_parser() -> MarkdownIt:
    """Return the parser of blocks and of what is inside them; `parse` gives blocks only, see `inline`."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.core.ruler.disable(["inline", "text_join"])
    parser.block.ruler.before(
        "table", "protected", _block_rule, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    return _noting_positions(parser)


@cache
def html_parser() -> MarkdownIt:
    """Return the parser of what is inside a block of HTML."""
    # Inside an HTML block there are tags, entities and words, and no Markdown.
    parser = MarkdownIt("commonmark")
    parser.inline.ruler.enableOnly(["text", "newline", "html_inline", "entity"])
    return _noting_positions(parser)


def _noting_positions(parser: MarkdownIt) -> MarkdownIt:
    """Wrap the inline rules so that each notes its spans in the environment."""
    parser.inline.ruler2.disable(["fragments_join"])  # it would merge the signs that carry a position
    rules = dict(zip(parser.inline.ruler.get_active_rules(), parser.inline.ruler.getRules(""), strict=True))
    for name, rule in rules.items():
        if name == "text":
            parser.inline.ruler.at("text", _text_rule)
        elif name in ("emphasis", "strikethrough"):
            parser.inline.ruler.at(name, _sign_rule(rule))
        elif name == "link":
            parser.inline.ruler.at(name, _link_rule(rule))
        else:
            parser.inline.ruler.at(name, _noted(rule, name))
    parser.inline.ruler.before("text", "protected", _protected_rule)
    return parser


def _coming(state: StateInline) -> Span | None:
    """The first protected span at or after the parser's position.

    The parser looks ahead and comes back, so answers are kept: one holds from where it was asked to the span.
    """
    known = state.env["known"].setdefault(state.src, [])
    index = bisect.bisect_right(known, state.pos, key=lambda answer: answer[0]) - 1
    if index >= 0 and (known[index][1] is None or known[index][1].start >= state.pos):
        return known[index][1]
    span = next_protected(state.src, state.pos)
    known.insert(index + 1, (state.pos, span))
    return span


def _protected_rule(state: StateInline, silent: bool) -> bool:
    span = _coming(state)
    if span is None or span.start != state.pos or span.end > state.posMax:
        return False
    if not silent:
        token = state.push("protected", "", 0)
        token.content, token.info = state.src[span.start : span.end], span.kind
        state.env["spans"].append(span)
    state.pos = span.end
    return True


def _text_rule(state: StateInline, silent: bool) -> bool:
    """markdown-it's own rule, which also stops where a protected span begins."""
    terminator = state.md.inline.terminator_re.search(state.src, state.pos, state.posMax)
    span = _coming(state)
    stop = min(terminator.start() if terminator else state.posMax, span.start if span else state.posMax)
    if stop == state.pos:
        return False
    if not silent:
        state.append_pending(state.src[state.pos : stop])
    state.pos = stop
    return True


def tag_side(tag: str) -> int:
    """Return +1 for an opening tag, -1 for a closing one, 0 for one that stands alone and for a comment."""
    name = TAG_NAME.match(tag)
    if tag.startswith("</"):
        return -1
    return 0 if not name or tag[1] in "!?" or tag.endswith("/>") or name.group(1).lower() in VOID else 1


def _noted(rule: Rule, name: str) -> Rule:
    kind = {"backticks": "code", "html_inline": "tag", "newline": "break"}.get(name, "markup")

    def noted(state: StateInline, silent: bool) -> bool:
        start, n_tokens, n_spans = state.pos, len(state.tokens), len(state.env["spans"])
        if not rule(state, silent):
            return False
        if silent or (name == "backticks" and len(state.tokens) == n_tokens):  # a backtick without a partner
            return True
        del state.env["spans"][n_spans:]  # those of an image's text, whose positions are not of this text
        side = tag_side(state.tokens[-1].content) if name == "html_inline" else 0
        line_ends = name == "newline" or state.tokens[-1].type == "hardbreak"
        while line_ends and start > 0 and state.src[start - 1] in " \t":
            start -= 1
        state.env["spans"].append(Span(start, state.pos, "break" if line_ends else kind, side))
        return True

    return noted


def _sign_rule(rule: Rule) -> Rule:
    def signs(state: StateInline, silent: bool) -> bool:
        if silent or state.src[state.pos] not in "*_~":
            return rule(state, silent)
        if state.pending:
            state.pushPending()
        position, n_tokens = state.pos, len(state.tokens)
        if not rule(state, silent):
            return False
        for token in state.tokens[n_tokens:]:
            token.meta["at"] = (position, position + len(token.content))
            position += len(token.content)
        return True

    return signs


def _link_rule(rule: Rule) -> Rule:
    def link(state: StateInline, silent: bool) -> bool:
        start = state.pos
        if silent or state.src[start] != "[":
            return rule(state, silent)
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        if not rule(state, silent):
            return False
        if state.src[label_end : state.pos] in ("]", "][]"):
            # [name] of a definition elsewhere: the words are its name, so they are kept.
            state.env["spans"].append(Span(start, state.pos, "markup"))
        else:
            state.env["spans"] += [
                Span(start, start + 1, "markup", 1),
                Span(label_end, state.pos, "markup", -1),
            ]
        return True

    return link


def _block_rule(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A tool call, a formula or JSON that fills whole lines is kept, blank lines in it or not."""
    if state.is_code_block(start_line):
        return False
    start = state.bMarks[start_line] + state.tShift[start_line]
    span = protected_block(state.src, start)
    if span is None:
        return False
    line = start_line
    while line < end_line and state.eMarks[line] < span.end:
        line += 1
    if line >= end_line:
        return False
    if not silent:
        token = state.push("protected", "", 0)
        token.content, token.info, token.map = state.src[start : span.end], span.kind, [start_line, line + 1]
        state.line = line + 1
    return True
