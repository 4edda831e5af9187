"""The forms in which texts are compared: the declared key, grapheme shingles, the skeleton of twins.

Reads and writes nothing. A key is only compared, never written to a row. Vowel signs, joiners and nuktas stay
in it, so that minimal pairs (कल and कुल, পতা and পুতা) stay two texts.
"""

import json
import re
from functools import lru_cache
from itertools import accumulate
from typing import Any

from anyascii import anyascii
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module without stubs)

from data_recipes.steps import Row
from data_recipes.text import normalise
from data_recipes.writing.digits import fold_digits
from data_recipes.writing.graphemes import graphemes

# What `key` does, for manifests.
KEY = "NFC, runs of white space as one space, digits of all scripts as ASCII ones"
_NUMBER = re.compile(r"[0-9]+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one, UTF-8 and so rensa cannot
# Spellings of one consonant fold to one sign, native or romanised: k kh g gh; ch chh j z sh s; t th d dh;
# p ph f b v w; n, m and the anusvara; l and zh (ழ). Tamil writes voiced and unvoiced stops with one letter,
# and Bengali v and b: so neither voice nor v and b tell here.
_DIGRAPHS = str.maketrans(
    {"x": "ks", "q": "k", "g": "k", "z": "s", "j": "s", "c": "s", "d": "t"}
) | str.maketrans({"f": "p", "b": "p", "v": "p", "w": "p", "m": "n"})
_NOT_COMPARED = re.compile(r"[^a-z0-9\s]")
_COMPARED = {
    code: None if _NOT_COMPARED.match(chr(code)) else _DIGRAPHS.get(code, chr(code)) for code in range(128)
}
_ASPIRATION = re.compile(r"(?<=[a-z])h")
_VOWELS = str.maketrans("", "", "aeiouy")
_DOUBLED = re.compile(r"([a-z])(?=\1)")


def contents(row: Row) -> list[tuple[str, str]]:
    """Return the role and the text of each message; what is not a string (parts, tool calls) as JSON."""
    found = []
    for message in row["messages"]:
        others: dict[str, Any] = {
            name: message[name] for name in sorted(message) if name not in ("role", "content")
        }
        content = message.get("content")
        texts = [content if isinstance(content, str) else "" if content is None else _json(content)]
        found.append(
            (message["role"], "\n".join([*texts, *([_json(others)] if any(others.values()) else [])]))
        )
    return found


class _Latin(dict[int, str]):
    """AnyASCII's letters of each character that was met, in lower case: it looks at one at a time."""

    def __missing__(self, code: int) -> str:
        self[code] = anyascii(chr(code)).lower()
        return self[code]


_LATIN = _Latin({ord("ழ"): anyascii("ல").lower()})


@lru_cache(maxsize=1)  # the forms of a text are asked for one after the other
def key(text: str) -> str:
    """Return the declared normalisation key of a text (`KEY`)."""
    return normalise(fold_digits(_LONE_SURROGATE.sub("\ufffd", text)))


def numbers(text: str) -> tuple[str, ...]:
    """Return the runs of digits of a text in order, in ASCII digits."""
    return tuple(_NUMBER.findall(fold_digits(text)))


def grapheme_shingles(text: str, n: int) -> set[str]:
    """Return all runs of `n` graphemes of a text's key in lower case; the whole of a shorter one."""
    folded = key(text).casefold()
    starts = [0, *accumulate(map(len, graphemes(folded)))]
    if len(starts) - 1 <= n:
        return {folded} if folded else set()
    return {folded[start:end] for start, end in zip(starts, starts[n:], strict=False)}


def skeleton(text: str) -> str:
    """Return the consonants of a text in Latin letters, so that हिन्दी and "hindee" look alike.

    AnyASCII gives one Latin spelling for each letter of any script; vowels, aspiration and voice then go,
    since people romanise these in many ways. Far too coarse to say that two short texts are one.
    """
    latin = key(text).translate(_LATIN).replace("zh", "l").translate(_COMPARED)
    folded = _ASPIRATION.sub("", latin).translate(_VOWELS)
    return " ".join(_DOUBLED.sub("", folded).split())


def skeleton_shingles(text: str, n: int) -> set[str]:
    """Return all runs of `n` signs of a text's skeleton, spaces among them."""
    signs = skeleton(text)
    if len(signs) <= n:
        return {signs} if signs else set()
    return {signs[i : i + n] for i in range(len(signs) - n + 1)}


def hashes(shingles: set[str]) -> set[int]:
    """Return 64-bit hashes of shingles, the same in every process."""
    return set(RMinHash.hash_token_sets([list(shingles)])[0])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
