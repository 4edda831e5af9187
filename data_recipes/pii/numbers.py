"""Numbers of digits alone: Aadhaar, its virtual id, phone numbers.

Reads nothing, writes nothing. All works on text with ASCII digits. The groups of digits that stand close
together form a chain, and each run of groups in it is looked at: "2341 2341 2346" has the shape (4, 4, 4).
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from stdnum.in_ import aadhaar, vid

from data_recipes.pii.candidates import Candidate

Group = tuple[int, int]  # start and end in the text
AADHAAR_SHAPES = {(12,), (4, 4, 4), (4, 8), (8, 4)}
VID_SHAPES = {(16,), (4, 4, 4, 4), (8, 8)}
MOBILE_SHAPES = {(10,), (5, 5), (3, 3, 4), (4, 3, 3), (4, 6), (3, 7)}
PHONE_PREFIXES = ("", "0", "91", "910", "0091", "00910")
MIN_DIGITS, MAX_DIGITS, MAX_GROUPS = 10, 16, 6  # +91 98 76 54 32 10 has six

# Not \b: an Indic ending is written onto a number, and is a word character. A Latin letter at a number, or an
# underscore that joins a name, makes it a part of a code or a hash, unless a context word says otherwise.
_GROUP = re.compile(r"[0-9]+")
_CODE_BEFORE = re.compile(r"[A-Za-z]$|[A-Za-z0-9]_$")
_CODE_AFTER = re.compile(r"[A-Za-z]|_[A-Za-z0-9]")
# White space within a line, hyphens and dashes, brackets, and signs that are not seen.
_GAP = re.compile(r"[^\S\r\n]?[-‐‑‒–—)(][^\S\r\n]?[(]?|[^\S\r\n][(]?|[\u200b-\u200f\u2060\ufeff]{1,3}|[.:]")
# 1,9876543210 and 9876543210.50 are amounts; 9876543210,9876543211 are two numbers.
_AMOUNT_BEFORE = re.compile(r"(?<![0-9])[0-9]{1,3}[.,]$")
_AMOUNT_AFTER = re.compile(r"[.,][0-9]{1,3}(?![0-9])")


def find_numbers(text: str) -> Iterator[Candidate]:
    """Yield what may be an Aadhaar number, a virtual id or a phone number."""
    for chain in _chains(text):
        for first in range(len(chain)):
            n_digits = 0
            for last in range(first, min(len(chain), first + MAX_GROUPS)):
                n_digits += chain[last][1] - chain[last][0]
                if n_digits > MAX_DIGITS:
                    break
                if n_digits >= MIN_DIGITS:
                    yield from _candidates(text, chain[first : last + 1])


def _chains(text: str) -> Iterator[list[Group]]:
    chain: list[Group] = []
    for match in _GROUP.finditer(text):
        if chain and not _GAP.fullmatch(text, chain[-1][1], match.start()):
            yield chain
            chain = []
        chain.append(match.span())
    yield chain


def _candidates(text: str, groups: list[Group]) -> Iterator[Candidate]:
    start, end = groups[0][0], groups[-1][1]
    gaps = [text[left[1] : right[0]] for left, right in zip(groups, groups[1:], strict=False)]
    dotted = [gap for gap in gaps if gap in ".:"]
    if dotted and (len(gaps) < 2 or len(set(gaps)) > 1):  # 98765.43210 is a decimal, 987.654.3210 is not
        return
    before = text[max(0, start - 5) : start]
    if _AMOUNT_AFTER.match(text, end) or _AMOUNT_BEFORE.search(before):
        return
    stands_alone = not (_CODE_AFTER.match(text, end) or _CODE_BEFORE.search(before))
    digits = "".join(text[left:right] for left, right in groups)
    shape = tuple(right - left for left, right in groups)
    if not before.endswith("+"):
        if shape in VID_SHAPES and vid.is_valid(digits):
            yield Candidate("AADHAAR_VID", start, end, stands_alone)
        if shape in AADHAAR_SHAPES and aadhaar.is_valid(digits):
            yield Candidate("AADHAAR", start, end, stands_alone)
    for prefix in PHONE_PREFIXES:
        if len(digits) == len(prefix) + 10 and digits.startswith(prefix):
            rest = _without_prefix(shape, len(prefix))
            if rest:
                for phone in _phone(before, start, end, prefix, digits[len(prefix) :], rest):
                    yield replace(phone, certain=phone.certain and stands_alone)


def _without_prefix(shape: tuple[int, ...], n_prefix: int) -> tuple[int, ...]:
    """Return the shape after the first `n_prefix` digits: (2, 5, 5) and (7, 5) give (5, 5) for two."""
    for i, length in enumerate(shape):
        if n_prefix < length:
            return (length - n_prefix, *shape[i + 1 :])
        n_prefix -= length
    return ()


def _phone(
    before: str, start: int, end: int, prefix: str, number: str, shape: tuple[int, ...]
) -> Iterator[Candidate]:
    from_abroad = prefix.startswith("00") or (before.endswith("+") and prefix.startswith("91"))
    if before.endswith("+") and not from_abroad:
        return
    is_mobile = number[0] in "6789"
    # A landline has ten digits with its area code of 2 to 4, and its own number begins with 2 to 7.
    is_landline = number[0] in "12345678" and (
        number[shape[0]] in "234567" if len(shape) > 1 and 2 <= shape[0] <= 4 else prefix != ""
    )
    if not (is_mobile or is_landline):
        return
    round_numbers = len(shape) > 1 and number[2:5] == "000" == number[7:]  # 80000-90000 is a range
    certain = from_abroad or (
        shape in MOBILE_SHAPES and not round_numbers
        if is_mobile
        else prefix != "" and len(shape) > 1 and 2 <= shape[0] <= 4
    )
    signs = len(before) - len(before.rstrip("+("))
    yield Candidate("PHONE", start - signs, end, certain)
