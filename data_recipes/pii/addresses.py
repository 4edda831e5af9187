"""Addresses with an @: e-mail and UPI ids.

Reads nothing, writes nothing. Only the places around an @ are looked at, so a long line costs its length.
"""

import re
from collections.abc import Iterator

import regex

from data_recipes.pii.candidates import Candidate
from data_recipes.pii.context import TABLES

_LOCAL = regex.compile(r"(?r)[\p{L}\p{M}\p{N}!#$%&'*+/=?^_{|}~.-]{1,64}")
# A Latin ending stops at the first letter of another script: a@b.comக்கு.
_DOMAIN = regex.compile(
    r"(?:[\p{L}\p{M}\p{N}][\p{L}\p{M}\p{N}-]{0,62}\.){1,8}(?:[A-Za-z]{2,24}|[[\p{L}\p{M}]--\p{Latin}]{2,24})",
    flags=regex.V1,
)
# RFC 2606.
_RESERVED = re.compile(r"(?:.*\.)?(?:example(?:\.com|\.org|\.net)?|invalid|test|localhost)", re.IGNORECASE)
_UPI_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,63}$")
_UPI_HANDLE = re.compile(r"[A-Za-z][A-Za-z0-9]{1,31}(?![A-Za-z0-9]|\.[A-Za-z])")


def find_addresses(text: str) -> Iterator[Candidate]:
    """Yield what may be an e-mail address or a UPI id."""
    handles = set(TABLES["upi_handles"])
    for at in (match.start() for match in re.finditer("@", text)):
        local = _LOCAL.match(text, 0, at)
        if local is None:
            continue
        if domain := _DOMAIN.match(text, at + 1):
            if not _RESERVED.fullmatch(domain.group()):
                yield Candidate("EMAIL", local.start() + _n_leading_dots(local.group()), domain.end(), True)
        elif (handle := _UPI_HANDLE.match(text, at + 1)) and (name := _UPI_NAME.search(local.group())):
            start = local.start() + name.start()
            yield Candidate("UPI_ID", start, handle.end(), handle.group().lower() in handles)


def _n_leading_dots(local: str) -> int:
    return len(local) - len(local.lstrip(".'/"))
