"""Made-up personal numbers in thirteen digit scripts, with python-stdnum's check digits as the oracle."""

import random
from collections.abc import Iterator

from stdnum import luhn, verhoeff
from stdnum.in_ import aadhaar, epic, gstin, pan

from data_recipes.writing.digits import write_digits

# A word of the script for each numbering system, to be written before a number and onto it.
WORDS = {
    "deva": "संख्या",
    "beng": "নম্বর",
    "guru": "ਨੰਬਰ",
    "gujr": "નંબર",
    "orya": "ନମ୍ବର",
    "tamldec": "எண்ணுக்கு",
    "telu": "సంఖ్య",
    "knda": "ಸಂಖ್ಯೆ",
    "mlym": "നമ്പർ",
    "arab": "رقم",
    "arabext": "نمبر",
    "mtei": "ꯃꯁꯤꯡ",
    "olck": "ᱞᱮᱠᱷᱟ",
}
BASE_36 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERS = BASE_36[10:]


def digits(n: int, rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=n))


def make_aadhaar(rng: random.Random) -> str:
    while True:
        body = rng.choice("23456789") + digits(10, rng)
        number = body + verhoeff.calc_check_digit(body)
        if aadhaar.is_valid(number):
            return number


def make_pan(rng: random.Random) -> str:
    number = "".join(rng.choices(LETTERS, k=3)) + rng.choice("ABCFGHLJPT") + rng.choice(LETTERS)
    number += f"{rng.randrange(1, 10_000):04}" + rng.choice(LETTERS)
    assert pan.is_valid(number)
    return number


def make_gstin(rng: random.Random) -> str:
    body = f"{rng.randrange(1, 38):02}{make_pan(rng)}{rng.choice(BASE_36[1:])}Z"
    number = body + luhn.calc_check_digit(body, BASE_36)
    assert gstin.is_valid(number)
    return number


def make_voter_id(rng: random.Random) -> str:
    serial = digits(6, rng)
    number = "".join(rng.choices(LETTERS, k=3)) + serial + luhn.calc_check_digit(serial)
    assert epic.is_valid(number)
    return number


def make_phone(rng: random.Random) -> str:
    return rng.choice("6789") + digits(9, rng)


def aadhaar_forms(number: str) -> Iterator[str]:
    parts = number[:4], number[4:8], number[8:]
    yield from (separator.join(parts) for separator in ("", " ", "-", "\u00a0", " - ", "\u200b"))


def phone_forms(number: str) -> Iterator[str]:
    yield from (
        number,
        f"{number[:5]} {number[5:]}",
        f"{number[:5]}-{number[5:]}",
        f"0{number}",
        f"+91{number}",
    )
    yield from (f"+91 {number[:5]} {number[5:]}", f"+91-{number}", f"0 {number}", f"0091 {number}")
    yield f"{number[:3]} {number[3:6]} {number[6:]}"
    yield f"+91 ({number[:5]}) {number[5:]}"


def in_texts(number: str, system: str) -> Iterator[tuple[str, str]]:
    """Yield texts with a number in them in a script's digits, each with the number as it stands there."""
    written, word = write_digits(number, system), WORDS[system]
    for text in (
        written,
        f"{word} {written}.",
        f"{word}{written}{word}",
        f"({written})",
        f"{word}: {written}, {word}",
    ):
        yield text, written
