"""What must survive a translation byte for byte, found in running text: `next_protected`.

Markdown's own syntax is not here: `document.py` asks Markdown's parser for it, and asks this file at the
places where the parser sees plain text. Reads nothing, writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import regex

NUMERIC = frozenset({"number", "date", "time", "currency"})  # kinds that the policy for digits is about


@dataclass(frozen=True)
class Span:
    """A stretch of a text. `side` is +1 where something opens, -1 where it closes, as <b> and </b>."""

    start: int
    end: int
    kind: str
    side: int = 0


# A word is not protected where it only belongs to a number or a date ("14 March", "5:45 PM", "2 lakh"): it is
# what a translation is for. ASCII classes where a translation may glue a suffix to what it kept.
_NUMBER = r"\p{Nd}+(?:[.,٬٫'’/]?\p{Nd}+)*"
_SIGNED = rf"(?<![\p{{L}}\p{{M}}\p{{N}}_)\]}}>])[-+−±]{_NUMBER}|{_NUMBER}"
_CLOCK = r"\p{Nd}{1,2}:\p{Nd}{2}(?::\p{Nd}{2}(?:[.,]\p{Nd}+)?)?"
_ZONE = r"(?:Z(?![A-Za-z])|[+-]\p{Nd}{2}:?\p{Nd}{2})"
_URL = r"[A-Za-z0-9\-._~:/?\#@!$&'*+,;=%]"
_IN_PARENTHESES = rf"\((?:{_URL}|[\p{{L}}\p{{M}}\p{{N}}])*\)"
# Letters of other scripts only after one of a URL's own signs: a suffix glued to it is not the URL's.
_IRI = r"(?<=[/=_\-\#?&])(?:(?![\x00-\x7f])[\p{L}\p{M}\p{N}])+"
_WORDS = r"(?:\s[\p{L}\p{M}]{3,}\s|[\p{L}\p{M}]{3,}\s+[\p{L}\p{M}]{3,}|[^\x00-\x7f]\s+[^\x00-\x7f])"
_KINDS: dict[str, str] = {
    "tool_call": r"(?s:<tool_call>.*?</tool_call>|<tool_response>.*?</tool_response>)",
    "special_token": (
        r"<[|｜][^<>|｜\s]{1,40}[|｜]>|\[(?:gMASK|sMASK|MASK|CLS|SEP|PAD|UNK|/?INST|/?TOOL_CALLS|/?AVAILABLE_TOOLS)\]"
        r"|<</?SYS>>|<(?:start|end)_of_(?:turn|image)>"
    ),
    # Tags that are not HTML's to Markdown's parser: <0>link</0> of React catalogues, <arg_key>.
    "tag": r"</?[0-9]+\s*/?>|</?[A-Za-z]\w*_[\w.:-]*(?:\s[^<>]*)?/?>",
    "latex": (
        r"(?s:\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\])"
        r"|(?s:\\begin\{(?P<environment>[A-Za-z]+\*?)\}.*?\\end\{(?P=environment)\})"
        # Pandoc's rule for $..$, and no words between the two, which would be prices or %1$s.
        rf"|\$(?![\s$])(?![^$\\]*{_WORDS}[^$\\]*\$)(?:\\.|[^$`\n\\])*(?<!\s|%[0-9]+)\$(?!\d)"
    ),
    "url": (
        rf"(?:(?:https?|ftps?|wss?|file)://|www\.|mailto:)(?:{_URL}|{_IN_PARENTHESES}|{_IRI})*"
        rf"(?:[A-Za-z0-9/~=&\#%+$@\-]|{_IN_PARENTHESES}|{_IRI})"
    ),
    "email": r"(?<![A-Za-z0-9])[A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9.\-]*[A-Za-z0-9])?",
    "placeholder": (
        r"\{\{[^{}]*\}\}|\{%[^{}%]*%\}|[$\#%@]\{[^{}\s]*\}"
        r"|(?=\{\s*\w+\s*,\s*(?:plural|select|selectordinal|number|date|time|duration)\b)"
        r"(?P<braces>\{(?:[^{}]++|(?&braces))*+\})"
        r"|\{\s*\$?[A-Za-z_][A-Za-z0-9_.\-\[\]]*(?:![rsa])?(?::[^{}\s]*)?\s*\}"
        r"|\{[0-9]+(?:![rsa])?(?::[^{}\s]*)?\}"
        r"|%\([A-Za-z_][\w.]*\)[-+\#0]*[0-9]*(?:\.[0-9]+)?[diouxXeEfFgGcrsa]"
        r"|(?<![\p{Nd}%])%(?:[0-9]+\$)?[-+\#0]*(?:[0-9]+|\*)?(?:\.(?:[0-9]+|\*))?(?:hh?|ll?|z)?"
        r"[diouxXeEfFgGcrsa@](?![A-Za-z]{2})|%%"
        r"|\$[A-Za-z_][A-Za-z0-9_]*|\$[0-9](?![0-9.,]*[0-9])"
    ),
    "task": r"\[[xX]\](?=\s)",
    "identifier": r"(?<![A-Za-z0-9_])[A-Za-z]+(?:_+[A-Za-z0-9]+|[0-9]+(?:\.[0-9]+)*[A-Za-z]*)+",
    # Letters in them: these are for machines, whatever the policy for digits says.
    "timestamp": rf"\p{{Nd}}{{4}}-\p{{Nd}}{{2}}-\p{{Nd}}{{2}}T{_CLOCK}{_ZONE}?",
    "scientific": rf"(?:{_SIGNED})[eE][-+]?\p{{Nd}}+",
    "date": (
        r"\p{Nd}{4}-\p{Nd}{1,2}-\p{Nd}{1,2}"
        r"|(?<!\p{Nd})\p{Nd}{1,2}(?P<slash>[-/.])\p{Nd}{1,2}(?P=slash)\p{Nd}{2,4}(?!\p{Nd})"
    ),
    "time": rf"(?<![\p{{Nd}}:]){_CLOCK}{_ZONE}?(?![\p{{Nd}}:])",
    "currency": (
        rf"(?:(?<![A-Za-z])(?:Rs\.?|INR|USD|EUR|GBP|NPR|BDT|PKR|LKR)|(?:US|A|C)?\p{{Sc}})[ \u00a0]?"
        rf"[-−]?{_NUMBER}(?:/-)?"
        rf"|{_NUMBER}(?:\p{{Sc}}|[ \u00a0](?!\$)\p{{Sc}})(?!\p{{Nd}})"
    ),
    "number": rf"(?:{_SIGNED})(?:%(?![A-Za-z(])|[‰٪])?|[\p{{No}}\p{{Nl}}]+",
    "json": r"[{\[]",
}
_PROTECTED = regex.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _KINDS.items()))
_BLOCK = regex.compile(
    rf"(?:(?P<tool_call>{_KINDS['tool_call']})|(?s:(?P<latex>\$\$.+?\$\$|\\\[.+?\\\]"
    r"|\\begin\{(?P<environment>[A-Za-z]+\*?)\}.*?\\end\{(?P=environment)\}))|(?P<json>[{\[]))"
)
_LINE_END = regex.compile(r"[ \t]*(?:\n|$)")
_JSON = json.JSONDecoder()


def _json_end(text: str, start: int) -> int:
    """The end of the JSON object or array that starts here, or -1."""
    try:
        end = _JSON.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return -1
    # [1](url) and [1][note] are links of Markdown.
    return -1 if text[start] == "[" and text[end : end + 1] in ("(", "[", ":") and end < len(text) else end


def next_protected(text: str, start: int) -> Span | None:
    """Return the first protected span at or after `start`, or None. Linear in what it reads."""
    position = start
    while match := _PROTECTED.search(text, position):
        kind = str(match.lastgroup) if match.lastgroup in _KINDS else _kind_of(match)
        if kind != "json":
            side = (
                0 if kind != "tag" or match.group().endswith("/>") else -1 if match.group()[1] == "/" else 1
            )
            return Span(match.start(), match.end(), kind, side)
        end = _json_end(text, match.start())
        if end > 0:
            return Span(match.start(), end, kind)
        position = match.start() + 1
    return None


def protected_block(text: str, start: int) -> Span | None:
    """Return the tool call, formula or JSON that starts here and ends at the end of a line, or None."""
    match = _BLOCK.match(text, start)
    if not match:
        return None
    kind = next(kind for kind in ("tool_call", "latex", "json") if match.group(kind))
    end = _json_end(text, start) if kind == "json" else match.end()
    return Span(start, end, kind) if end > 0 and _LINE_END.match(text, end) else None


def _kind_of(match: regex.Match[str]) -> str:
    return next(kind for kind in _KINDS if match.group(kind) is not None)
