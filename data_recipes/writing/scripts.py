"""Facts about scripts, computed from Unicode's properties: code point ranges, direction.

Reads nothing, writes nothing. Scripts are named by ISO 15924: "Deva", "Arab".
"""

import unicodedata
from collections import Counter
from functools import cache
from typing import Literal

import regex

from data_recipes.artefact import UserError


@cache
def script_ranges(script: str) -> tuple[tuple[int, int], ...]:
    """Return the code points of a script as (first, last) pairs in ascending order.

    Only its own ones: signs that several scripts share (the danda, joiners, the Arabic-Indic digits) have the
    script "Common" or "Inherited" in Unicode.

    Raises:
        UserError: Unicode has no such script, or only as an alias for several.
    """
    try:
        pattern = regex.compile(rf"\p{{Script={script}}}+")
    except regex.error as error:
        raise UserError(f"unknown script {script!r}: ISO 15924 codes are like Deva, Beng, Arab") from error
    runs = [match.span() for match in pattern.finditer("".join(map(chr, range(0x110000))))]
    if not runs or script in ("Zyyy", "Zinh", "Zzzz"):
        raise UserError(f"{script!r} is no script of its own: ISO 15924 codes are like Deva, Beng, Arab")
    return tuple((start, end - 1) for start, end in runs)


@cache
def direction(script: str) -> Literal["ltr", "rtl"]:
    """Return the direction in which a script is written, from the bidirectional class of most of its letters.

    Raises:
        UserError: as `script_ranges`.
    """
    characters = (chr(point) for first, last in script_ranges(script) for point in range(first, last + 1))
    classes = Counter(unicodedata.bidirectional(c) for c in characters if unicodedata.category(c)[0] == "L")
    return "rtl" if classes["R"] + classes["AL"] > classes["L"] else "ltr"
