"""Does an answer keep the format that was asked for, and does it hold the numbers that it must?

Reads nothing, writes nothing. Digits of every script count alike.
"""

from collections import Counter
from collections.abc import Callable
from decimal import Decimal

import regex

from data_recipes.row_sources import strict_json
from data_recipes.writing.digits import fold_digits
from data_recipes.writing.graphemes import words

_BULLET = regex.compile(r"\s*[-*+•‣▪]\s+\S")
_NUMBERED = regex.compile(r"\s*\(?(?P<number>\p{Nd}+)[.)।:]\s*\S")
# Indian groups (1,87,500), western ones (187,500) or none; decimals after a point. The signs of Arabic
# numbers count as well. A comma that makes no group parts two numbers.
_NUMBER = regex.compile(
    r"(?<![\d.٫])(?P<whole>\d{1,2}(?:[,٬،]\d\d)*[,٬،]\d{3}(?!\d)|\d{1,3}(?:[,٬،]\d{3})+(?!\d)|\d+)(?:[.٫](?P<decimals>\d+))?"
)
_SIGNS_AROUND = regex.compile(r"^[-\u2212+]|[.।۔]$")


def _is_json(answer: str) -> bool:
    try:
        strict_json.parse(answer.strip())
    except strict_json.NotStrictJson:
        return False
    return True


def _is_json_object(answer: str) -> bool:
    return answer.strip().startswith("{") and _is_json(answer)


def _lines(answer: str) -> list[str]:
    return [line for line in answer.splitlines() if line.strip()]


def _is_bullet_list(answer: str) -> bool:
    return bool(_lines(answer)) and all(_BULLET.match(line) for line in _lines(answer))


def _is_numbered_list(answer: str) -> bool:
    found = [_NUMBERED.match(line) for line in _lines(answer)]
    numbers = [int(fold_digits(match["number"])) for match in found if match]
    return len(numbers) == len(found) > 0 and numbers == list(range(1, len(found) + 1))


def _is_number(answer: str) -> bool:
    text = _SIGNS_AROUND.sub("", fold_digits(answer.strip()))
    return bool(_NUMBER.fullmatch(text))


# The whole answer must have the format: a sentence before it, or a code fence around it, breaks it.
FORMATS: dict[str, Callable[[str], bool]] = {
    "json": _is_json,
    "json_object": _is_json_object,
    "bullet_list": _is_bullet_list,
    "numbered_list": _is_numbered_list,  # from 1, without a gap
    "number": _is_number,  # one number, signs of grouping and a full stop at the end allowed
    "one_line": lambda answer: len(_lines(answer)) == 1,
    "one_word": lambda answer: len(words(answer)) == 1,
}


def numbers_in(text: str) -> Counter[Decimal]:
    """Return the numbers of a text and how often each stands there, whatever their digits and groups.

    A sign is no part of a number, for a hyphen looks like one; "2026-03-14" holds 2026, 3 and 14.
    """
    found = _NUMBER.finditer(fold_digits(text))
    return Counter(
        Decimal(
            regex.sub("[,٬،]", "", match["whole"]) + (f".{match['decimals']}" if match["decimals"] else "")
        )
        for match in found
    )


def numbers_kept(answer: str, expected: str) -> tuple[int, int]:
    """Return how many numbers of the expected answer stand in the answer, and how many there are to keep.

    A number that is expected twice must stand there twice; others that stand there cost nothing.
    """
    wanted = numbers_in(expected)
    return (wanted & numbers_in(answer)).total(), wanted.total()
