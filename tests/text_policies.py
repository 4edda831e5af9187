"""The text policies that tests go through, and the characters of India's blocks they are tried on."""

import itertools
from typing import Any

from data_recipes.writing.normalisation import TextPolicy, apply_policy
from data_recipes.writing.written_forms import written_form

HINDI = written_form("hi")
BOLD: dict[str, Any] = {
    "digits": "native",
    "quotes": "ascii",
    "dashes": "ascii",
    "danda": "danda",
    "white_space": "collapse",
}  # everything that changes a text, beside what POLICIES goes through
RESTS: list[dict[str, Any]] = [
    {},
    BOLD,
    {"digits": "ascii", "white_space": "plain", "bidi_controls": "keep", "line_ends": "keep"},
]
POLICIES = [
    TextPolicy(nukta=nukta, spellings=spellings, joiners=joiners, invisible=invisible, **rest)
    for nukta, spellings, joiners, invisible, rest in itertools.product(
        ("decomposed", "precomposed"),
        ("keep", "preferred"),
        ("keep", "drop_idle"),
        ("keep", "remove"),
        RESTS,
    )
]
BOLDEST = TextPolicy(spellings="preferred", joiners="drop_idle", **BOLD)
BLOCKS = """
0020-024F 0300-036F 0600-06FF 0750-077F 0860-0DFF 1C50-1C7F 1CD0-1CFF 2000-206F A8E0-A8FF AAE0-AAFF
ABC0-ABFF FB50-FDFF FE00-FE0F FE70-FEFF 11000-11FFF
"""  # Latin, combining marks, Arabic, all of India's, punctuation, presentation forms
RANGES = [[int(end, 16) for end in block.split("-")] for block in BLOCKS.split()]
CHARACTERS = [chr(point) for first, last in RANGES for point in range(first, last + 1)]
# Ignorable by default, but no controls: fillers, selectors, a grapheme joiner, one that is reserved.
IGNORABLE = {0x34F, 0x2065, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0}
IGNORABLE |= {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}


def under(policy: TextPolicy, text: str) -> str:
    """The text under a policy, taken for Hindi in Devanagari."""
    return apply_policy(text, policy, HINDI).text
