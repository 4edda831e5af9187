"""Find personal data in a text of any script: numbers of persons, accounts and vehicles, UPI ids, e-mail.

Reads and writes nothing. Everything is looked for in the text with its digits folded one for one, so the
places found are places in the text. Check digits are python-stdnum's.
"""

import re
from dataclasses import dataclass

from data_recipes.pii.addresses import find_addresses
from data_recipes.pii.candidates import Candidate
from data_recipes.pii.codes import find_codes
from data_recipes.pii.context import TABLES, has_context, is_amount
from data_recipes.pii.numbers import find_numbers
from data_recipes.pii.presidio import find_by_presidio
from data_recipes.writing.digits import fold_digits

# In the order in which they win where two overlap: a GSTIN holds a PAN, a UPI id may be a phone number.
KINDS = (
    "EMAIL",
    "UPI_ID",
    "GSTIN",
    "AADHAAR_VID",
    "AADHAAR",
    "IFSC",
    "PAN",
    "VOTER_ID",
    "VEHICLE",
    "PASSPORT",
    "PHONE",
)
_NUMBERS = ("AADHAAR_VID", "AADHAAR", "PHONE")
_ORDER = {kind: i for i, kind in enumerate(KINDS)}
_ANY_SIGN = re.compile("[0-9@]")


@dataclass(frozen=True)
class Finding:
    """Personal data at `text[start:end]`."""

    kind: str
    start: int
    end: int


def find_pii(text: str, kinds: tuple[str, ...] = KINDS, presidio: tuple[str, ...] = ()) -> list[Finding]:
    """Return what is personal in a text, in its order and without overlaps.

    Args:
        presidio: entities that Presidio looks for as well (`presidio.RECOGNISERS`).
    """
    folded = fold_digits(text)
    if not presidio and not _ANY_SIGN.search(folded):
        return []
    candidates = [
        candidate
        for find in (find_addresses, find_codes, find_numbers)
        for candidate in find(folded)
        if candidate.kind in kinds
    ]
    candidates += find_by_presidio(folded, presidio)
    if not candidates:
        return []
    order = _ORDER | {kind: len(_ORDER) + i for i, kind in enumerate(presidio)}
    candidates.sort(key=lambda c: (not c.certain, order[c.kind], c.start, -c.end))
    found: list[Finding] = []
    taken = bytearray(len(folded))
    for candidate in candidates:
        place = slice(candidate.start, candidate.end)
        if not any(taken[place]) and _is_personal(candidate, folded):
            found.append(Finding(candidate.kind, candidate.start, candidate.end))
            taken[place] = b"\1" * (candidate.end - candidate.start)
    return sorted(found, key=lambda finding: finding.start)


def compact(value: str) -> str:
    """Return a value as it is compared: ASCII digits, upper case; only an address keeps its signs."""
    folded = fold_digits(value).upper()
    return folded if "@" in folded else re.sub("[^A-Z0-9]", "", folded)


def _is_personal(candidate: Candidate, folded: str) -> bool:
    where = folded, candidate.start, candidate.end
    if candidate.kind in _NUMBERS and is_amount(*where):
        return False
    return candidate.certain or (candidate.kind in TABLES["context"] and has_context(candidate.kind, *where))
