"""Values that stand in for personal ones: the same form, the right check digit, and nobody's.

Reads and writes nothing but the key file it is asked for. A value gives the same surrogate wherever it stands
under one key, so that a dialogue stays consistent. The key is 32 secret bytes that go into no output: without
it nobody can try all Aadhaar numbers until one gives the surrogate. Where they come from:

- Aadhaar, VID: begin with 1 (UIDAI issues none with 0 or 1), valid Verhoeff digit.
- PAN: serial number 0000 (issued are 0001 to 9999), the holder's type is kept; GSTIN: holds such a PAN, its
  state is kept, valid check sign.
- IFSC: bank ZZZZ, which no bank has (Razorpay's list of them); passport: begins with Q, X or Z; vehicle:
  state ZZ, or year 00 of series BH.
- phone: national number 50..., which is neither a mobile series nor an area code. Every number that begins
  with 6 to 9 can be somebody's (libphonenumber 9.0.42 took 200,000 of 200,000 drawn, none of 3,000 of 50...).
- voter id: letters ZZZ, valid Luhn digit. There is no public list of these letters: this one is not certain.
- e-mail: at example.com (RFC 2606); UPI: at the handle "example", which NPCI does not list.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import regex
from stdnum import luhn, verhoeff

from data_recipes.artefact import UserError
from data_recipes.pii.codes import BASE_36
from data_recipes.pii.recognisers import compact
from data_recipes.writing.digits import fold_digits

KEY_BYTES = 32
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Draw = Callable[[str], str]  # signs -> one of them


def read_or_make_key(path: str | Path) -> bytes:
    """Return the secret key in a file, made on the first call; a build that is resumed reads the same one.

    Keep it outside the folder of the dataset, and delete it when the build is done: surrogates then cannot be
    traced back by trying values.

    Raises:
        UserError: the file holds something else, or cannot be read or written.
    """
    path = Path(path)
    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot use {path} as the file of the surrogates' key: {error}") from error
    if not regex.fullmatch(f"[0-9a-f]{{{2 * KEY_BYTES}}}", key):
        raise UserError(
            f"{path} holds no key for surrogates: it must be {2 * KEY_BYTES} hex digits; "
            "remove it, and a new key is written there"
        )
    return bytes.fromhex(key)


def surrogate(kind: str, value: str, key: bytes) -> str:
    """Return what stands in for a value, with its separators, its letter case and its script's digits.

    Raises:
        UserError: the key is not of 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise UserError(f"the surrogates' key must be {KEY_BYTES} random bytes, this has {len(key)}")
    old = canonical(kind, value)
    new = _made(kind, old, key)
    if kind in ("EMAIL", "UPI_ID"):
        return new
    return _in_the_form_of(value, new)


def canonical(kind: str, value: str) -> str:
    """Return a value as it is compared: without separators, and a phone number without +91 or 0."""
    return compact(value)[-10:] if kind == "PHONE" else compact(value)


def _made(kind: str, old: str, key: bytes) -> str:
    draws = _draws(kind, old, key)

    def draw(signs: str) -> str:
        return signs[next(draws) % len(signs)]

    if kind == "GSTIN":
        body = old[:2] + _made("PAN", old[2:12], key) + old[12:14]
        return body + luhn.calc_check_digit(body, BASE_36)
    return _MAKERS[kind](old, draw)


def _draws(kind: str, old: str, key: bytes) -> Iterator[int]:
    for block in range(256):
        digest = hmac.digest(key, f"{kind}:{old}:{block}".encode(), hashlib.sha256)
        yield from (int.from_bytes(digest[i : i + 8]) for i in range(0, 32, 8))


def _digits(n: int, draw: Draw) -> str:
    return "".join(draw("0123456789") for _ in range(n))


def _letters(n: int, draw: Draw) -> str:
    return "".join(draw(_LETTERS) for _ in range(n))


def _with_verhoeff(old: str, draw: Draw) -> str:
    body = "1" + _digits(len(old) - 2, draw)
    return body + verhoeff.calc_check_digit(body)


def _pan(old: str, draw: Draw) -> str:
    return _letters(3, draw) + old[3] + draw(_LETTERS) + "0000" + draw(_LETTERS)


def _voter_id(old: str, draw: Draw) -> str:
    serial = _digits(6, draw)
    return "ZZZ" + serial + luhn.calc_check_digit(serial)


def _vehicle(old: str, draw: Draw) -> str:
    drawn = "".join(draw("0123456789") if sign.isdigit() else draw("ABCDEFGHJKLMNPRSTUVWXYZ") for sign in old)
    return f"00BH{drawn[4:]}" if old[0].isdigit() else f"ZZ{drawn[2:]}"


def _passport(old: str, draw: Draw) -> str:
    return draw("QXZ") + draw("123456789") + _digits(5, draw) + draw("123456789")


_MAKERS: dict[str, Callable[[str, Draw], str]] = {
    "AADHAAR": _with_verhoeff,
    "AADHAAR_VID": _with_verhoeff,
    "PAN": _pan,
    "IFSC": lambda old, draw: "ZZZZ0" + _digits(6, draw),
    "VOTER_ID": _voter_id,
    "VEHICLE": _vehicle,
    "PASSPORT": _passport,
    "PHONE": lambda old, draw: "50" + _digits(8, draw),
    "EMAIL": lambda old, draw: f"user{_digits(10, draw)}@example.com",
    "UPI_ID": lambda old, draw: f"user{_digits(10, draw)}@example",
}


def _in_the_form_of(value: str, new: str) -> str:
    """Put the signs of `new` in place of the last letters and digits of `value`, which keeps all else."""
    signs = list(value)
    places = [i for i, sign in enumerate(fold_digits(value)) if sign.isascii() and sign.isalnum()]
    places = places[-len(new) :]
    assert len(places) == len(new), "a surrogate has as many letters and digits as its value"
    for place, sign in zip(places, new, strict=True):
        old = signs[place]
        if sign.isdigit() and fold_digits(old).isdigit():
            # A script's ten digits stand in a row.
            signs[place] = chr(ord(old) - int(fold_digits(old)) + int(sign))
        else:
            signs[place] = sign.lower() if old.islower() else sign
    return "".join(signs)
