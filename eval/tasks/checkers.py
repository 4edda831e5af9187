"""Which answers are right: one function a checker, from a task's row and an answer. Reads and writes nothing.

`row` leaves it to each row: a checker of this table, or the one of data_recipes that its dataset names.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from data_recipes.artefact import UserError
from data_recipes.locales.dates import same_date
from data_recipes.locales.parsing import parse_number, parse_rupees
from data_recipes.tasks import TASKS, check
from data_recipes.text import normalise
from data_recipes.writing.digits import fold_digits

ROW_CHECKER = "row"
Checker = Callable[[Mapping[str, Any], str], bool]


def _tag(row: Mapping[str, Any]) -> str:
    return f"{row['language']}-{row['script']}"


def _exact(row: Mapping[str, Any], answer: str) -> bool:
    return normalise(answer) == normalise(row["expected"])


def _reference(row: Mapping[str, Any], answer: str) -> bool:
    return fold_digits(normalise(answer)) == fold_digits(normalise(row["expected"]))


def _same_number(row: Mapping[str, Any], answer: str) -> bool:
    expected = _read(parse_number, row)
    return expected == parse_number(answer, _tag(row))


def _same_rupees(row: Mapping[str, Any], answer: str) -> bool:
    expected = _read(parse_rupees, row)
    return expected == parse_rupees(answer, _tag(row))


def _same_date(row: Mapping[str, Any], answer: str) -> bool:
    value = str(row.get("value"))
    try:
        day = datetime.date.fromisoformat(json.loads(value)["date"] if value.startswith("{") else value)
    except (ValueError, KeyError) as error:
        raise UserError(
            f'row {row["id"]}: same_date needs a column value like "2026-03-14": {value!r}'
        ) from error
    return same_date(answer, day, _tag(row))


def _read(parse: Callable[[str, str], Decimal | None], row: Mapping[str, Any]) -> Decimal:
    number = parse(row["expected"], _tag(row))
    if number is None:
        raise UserError(
            f"row {row['id']}: its answer {row['expected']!r} is not read as a number; use reference"
        )
    return number


# reference: white space, Unicode form and the script of digits do not matter; exact: the digits' script does;
# same_*: any way the language writes that number, amount or date (a date's row has the column `value`).
CHECKERS: dict[str, Checker] = {
    "reference": _reference,
    "exact": _exact,
    "same_number": _same_number,
    "same_rupees": _same_rupees,
    "same_date": _same_date,
}


def is_right(checker: str, row: Mapping[str, Any], answer: str) -> bool:
    """Return whether an answer to a row is right.

    Raises:
        UserError: the row names no known checker, or its expected answer is not of the checker's kind.
    """
    name = row.get("checker") if checker == ROW_CHECKER else checker
    if name in CHECKERS:
        return CHECKERS[name](row, answer)
    if name in TASKS:
        return check(str(name), row["language"], row["value"], answer)
    raise UserError(
        f"row {row['id']}: unknown checker {name!r}: known are {', '.join(CHECKERS)}, {', '.join(TASKS)}"
    )
