"""Text rules that every stage shares: one normal form, words by script, shares of a script.

Reads nothing, writes nothing. Everything here cuts text with `regex`, because the standard library's `\\w`
splits Indic words at their vowel signs.
"""

import unicodedata

import regex

_SPACES = regex.compile(r"\s+")
# Signs shared between scripts are left out.
_LETTERS = regex.compile(r"[[\p{L}\p{M}]--[\p{Script=Zyyy}\p{Script=Zinh}]]", regex.V1)
_SCRIPTS: dict[str, regex.Pattern[str]] = {}


def normalise(text: str) -> str:
    """Return `text` in NFC with runs of white space as one space and none at the ends.

    NFC, not NFKC: compatibility forms carry meaning in code and digits. NFC decomposes the nukta letters that
    Unicode excludes from composition; both sides of every comparison pass through here, so they agree.
    Joiners (ZWJ, ZWNJ) stay: they are part of the spelling in hi, mr, bn, ml, kn and ne.
    """
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def script_share(text: str, script: str) -> float:
    """Return the share of letters and marks of `text` that belong to an ISO 15924 script, from 0 to 1.

    Signs shared between scripts (the danda, joiners) count for neither side. 0.0 when there is no letter.
    """
    if script not in _SCRIPTS:
        _SCRIPTS[script] = regex.compile(rf"\p{{Script={script}}}")
    letters = _LETTERS.findall(text)
    if not letters:
        return 0.0
    return sum(bool(_SCRIPTS[script].match(c)) for c in letters) / len(letters)
