"""Codes of letters and digits: PAN, GSTIN, IFSC, voter id, passport, number plates.

Reads nothing, writes nothing. All works on text with ASCII digits.
"""

import re
from collections.abc import Callable, Iterator

from stdnum import luhn
from stdnum.in_ import epic, pan

from data_recipes.pii.candidates import Candidate
from data_recipes.pii.context import TABLES

BASE_36 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# stdnum 2.2 ends at 37. 38 is Ladakh, 96 abroad, 97 other territory, 99 the centre (GST Network's codes).
GST_STATES = {f"{code:02}" for code in (*range(1, 39), 96, 97, 99)}
_S = r"(?:[^\S\r\n]|[-‐‑‒–—])?"
_STATES = "|".join(f"[{a}{a.lower()}][{b}{b.lower()}]" for a, b in TABLES["vehicle_states"])


def is_gstin(value: str) -> bool:
    """Whether a value in upper case is a GSTIN: its state, the PAN within, the check sign."""
    return value[:2] in GST_STATES and pan.is_valid(value[2:12]) and luhn.is_valid(value, BASE_36)


def _upper(check: Callable[[str], bool]) -> Callable[[str], bool]:
    # Lower case is how hashes and names in code look: there the shape alone is no evidence.
    return lambda value: value == value.upper() and check(value)


# kind -> its shape, and what is evidence enough without a context word.
CODES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "GSTIN": (
        rf"[0-9]{{2}}{_S}[A-Za-z]{{5}}{_S}[0-9]{{4}}{_S}[A-Za-z]{_S}[1-9A-Za-z][Zz][0-9A-Za-z]",
        lambda value: is_gstin(value.upper()),
    ),
    "IFSC": (
        r"[A-Za-z]{4}0[A-Za-z0-9]{6}",
        _upper(lambda value: sum(sign.isdigit() for sign in value[5:]) >= 3),
    ),
    "PAN": (rf"[A-Za-z]{{5}}{_S}[0-9]{{4}}{_S}[A-Za-z]", _upper(pan.is_valid)),
    "VOTER_ID": (rf"[A-Za-z]{{3}}{_S}[0-9]{{7}}", _upper(epic.is_valid)),
    "VEHICLE": (
        rf"(?:{_STATES}){_S}[0-9]{{1,2}}{_S}[A-Za-z]{{1,3}}{_S}[0-9]{{4}}"
        rf"|[0-9]{{2}}{_S}[Bb][Hh]{_S}[0-9]{{4}}{_S}[A-Za-z]{{1,2}}",
        _upper(lambda value: True),
    ),
    # Q, X and Z begin no Indian passport's number, and neither its first nor its last digit is 0.
    "PASSPORT": (rf"[A-PR-WYa-pr-wy][1-9][0-9]{_S}[0-9]{{4}}[1-9]", lambda value: False),
}
_PATTERNS = {
    kind: re.compile(rf"(?<![A-Za-z0-9])(?:{shape})(?![A-Za-z0-9])") for kind, (shape, _) in CODES.items()
}
_LETTER_BY_DIGIT = re.compile(rf"[A-Za-z]{_S}[0-9]")


def find_codes(text: str) -> Iterator[Candidate]:
    """Yield what may be one of the codes."""
    if not _LETTER_BY_DIGIT.search(text):
        return
    for kind, (_, is_certain) in CODES.items():
        for match in _PATTERNS[kind].finditer(text):
            value = re.sub("[^A-Za-z0-9]", "", match.group())
            yield Candidate(kind, *match.span(), is_certain(value))
