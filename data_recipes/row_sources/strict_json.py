"""JSON as the standard writes it, and no more: what Python's own reader lets pass is refused here.

Reads text, writes nothing. Refused: NaN and Infinity, numbers too large for a float, a key written twice,
lone surrogates, deep nesting (which would end in a RecursionError somewhere later).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

MAX_DEPTH = 64
# The closing quote may be absent, so that a quote never closed is one match to the end and not a search from
# each quote on; possessive, so that nothing is tried twice.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NotStrictJson(ValueError):
    """`reason` is one of a few texts to be counted; `column` counts characters from 1, 0 for unknown."""

    def __init__(self, reason: str, detail: str, column: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.column = reason, detail, column


def parse(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        NotStrictJson: it is not JSON, or JSON of which two readers would make two things.
    """
    if _deeper_than(text, MAX_DEPTH):
        raise NotStrictJson("nested too deep", f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = _DECODER.decode(text)
    except NotStrictJson:
        raise
    except json.JSONDecodeError as error:
        raise NotStrictJson("not JSON", error.msg, error.pos + 1) from error
    except ValueError as error:  # a whole number of more than 4,300 digits
        raise NotStrictJson("a number too large", str(error).partition(";")[0]) from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise NotStrictJson("a lone surrogate", "half of a surrogate pair is no character") from error
    return value


def _deeper_than(text: str, limit: int) -> bool:
    if text.count("{") + text.count("[") <= limit:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > limit:
            return True
    return False


def _constant(name: str) -> NoReturn:
    raise NotStrictJson("NaN or Infinity", f"{name} is no JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotStrictJson("a number too large", f"a number of {len(text)} characters is beyond a float")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = next(item for item in Counter(key for key, _ in pairs).items() if item[1] > 1)
        raise NotStrictJson("a key written twice", f"the key {twice[:60]!r} is written twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
