"""Locale rows for every scheduled language: asked in English about a language, or in its own phrasings.

Reads the checked facts of `data_recipes.locales` and, for `own`, the phrasings of `data_recipes`; writes
nothing. Dates and amounts are those of the test split, which no recipe's training row holds. A fact that no
checked source has in a language makes no row: `LocaleRows.left_out` says which.
"""

import datetime
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from babel import Locale

from data_recipes.artefact import UserError
from data_recipes.languages import language
from data_recipes.locale_facts import UNITS
from data_recipes.locale_rows import distinct_values, make_row, questions
from data_recipes.locales.dates import format_date, format_time, month_names, weekday_names
from data_recipes.locales.numbers import format_number, format_rupees
from data_recipes.locales.tables import digit_systems_of
from data_recipes.locales.words import format_duration, format_unit, language_names, territory_names
from data_recipes.tasks import TASKS, Value, canonical, phrasings
from data_recipes.writing.written_forms import WrittenForm, written_form

N_CHOICES = 4
_MONTHS = tuple(datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13))
_WEEKDAYS = tuple(datetime.date(2024, 1, day).strftime("%A") for day in range(1, 8))  # a Monday first


@dataclass(frozen=True)
class Question:
    """One kind of question in English; {x} is the value, {language} and {script} what is asked for."""

    asked: str
    shown: Callable[[Value], str]  # the value in the question
    answer: Callable[[Value, str], str | None]  # by tag; None where no checked source has it
    checker: str
    drawn_like: str = ""  # the task of data_recipes whose test values these are
    values: Callable[[str], list[Value]] | None = None  # a list of facts instead, by tag


class LocaleRows(NamedTuple):
    """The rows, and for each language the questions no checked source could answer."""

    rows: list[dict[str, Any]]
    left_out: dict[str, list[str]]


def _day(value: Value) -> datetime.date:
    return datetime.date.fromisoformat(value["date"])


def _native_number(value: Value, tag: str) -> str | None:
    native = [system for system in digit_systems_of(tag) if system != "latn"]
    return format_number(value["rupees"], tag, native[-1]) if native else None


def _named(english: tuple[str, ...], names: Callable[[str], tuple[str, ...] | None]) -> dict[str, Any]:
    """What months and weekdays have in common: all of them are asked, with answers by their number."""

    def answer(value: Value, tag: str) -> str | None:
        found = names(tag)
        return found[value["number"]] if found else None

    return {
        "shown": lambda value: english[value["number"]],
        "answer": answer,
        "checker": "reference",
        "values": lambda tag: [{"number": number} for number in range(len(english))],
    }


def _of_codes(names: Callable[[str], dict[str, str]]) -> dict[str, Any]:
    """What names of countries and languages have in common: asked by the English name, kept under a code."""
    return {
        "shown": lambda value: names("en")[value["code"]],
        "answer": lambda value, tag: names(tag).get(value["code"]),
        "checker": "reference",
        "values": lambda tag: [{"code": code} for code in sorted(names(tag)) if code in names("en")],
    }


_ALONE = "Answer in {language} in the {script} script, with nothing else."
QUESTIONS: dict[str, Question] = {
    "date": Question(
        f"Write the date {{x}} in full, with the name of the month. {_ALONE}",
        shown=lambda value: value["date"],
        answer=lambda value, tag: format_date(_day(value), tag, "long"),
        checker="same_date",
        drawn_like="date",
    ),
    "time": Question(
        f"Write the time {{x}} on the twelve-hour clock with the part of the day in words. {_ALONE}",
        shown=lambda value: f"{value['hour']:02d}:{value['minute']:02d}",
        answer=lambda value, tag: format_time(value["hour"], value["minute"], tag, "words"),
        checker="reference",
        drawn_like="time",
    ),
    "duration": Question(
        f"Write the duration {{x}} with the units in words. {_ALONE}",
        shown=lambda value: f"{value['hours']} h {value['minutes']} min",
        answer=lambda value, tag: format_duration(value["hours"], value["minutes"], tag),
        checker="reference",
        drawn_like="duration",
    ),
    "unit": Question(
        f"Write the measure {{x}} with the unit in words. {_ALONE}",
        shown=lambda value: f"{value['amount']} {value['unit']}",
        answer=lambda value, tag: format_unit(value["amount"], UNITS[value["unit"]], tag),
        checker="reference",
        drawn_like="unit",
    ),
    "rupees": Question(
        "Write {x} rupees with the rupee sign and lakh commas, as in {language}. Answer with nothing else.",
        shown=lambda value: str(value["rupees"]),
        answer=lambda value, tag: format_rupees(value["rupees"], tag),
        checker="same_rupees",
        drawn_like="rupees",
    ),
    "digits": Question(
        "Write the number {x} with lakh commas, in the digits of the {script} script as used in {language}. "
        "Answer with nothing else.",
        shown=lambda value: str(value["rupees"]),
        answer=_native_number,
        checker="exact",
        drawn_like="rupees",
    ),
    "month": Question(f"What is the month {{x}} called? {_ALONE}", **_named(_MONTHS, month_names)),
    "weekday": Question(f"What is the weekday {{x}} called? {_ALONE}", **_named(_WEEKDAYS, weekday_names)),
    "territory": Question(f"What is the country {{x}} called? {_ALONE}", **_of_codes(territory_names)),
    "language_name": Question(f"What is the language {{x}} called? {_ALONE}", **_of_codes(language_names)),
}


def locale_rows(
    tags: tuple[str, ...], names: tuple[str, ...], n: int, seed: int, asked_in: str, with_choices: bool
) -> LocaleRows:
    """Return at most `n` rows of each question and language, the same for the same seed.

    Args:
        with_choices: give each row `choices` and the number of the `right` one; a question with fewer than
            four different answers makes no row.

    Raises:
        UserError: a language without a single row, or without phrasings for "own".
    """
    rows: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    for tag in tags:
        form = written_form(tag)
        found: list[dict[str, Any]] = []
        for name in names:
            rng = random.Random(f"{seed}:{tag}:{name}")
            made = _own_rows(name, form, n, rng) if asked_in == "own" else _rows(name, form, n, rng)
            made = _with_choices(made, rng) if with_choices else made
            found += made
            if not made:
                left_out.setdefault(tag, []).append(name)
        if not found:
            raise UserError(f"the language {tag!r} has no rows: no checked source answers {', '.join(names)}")
        rows += found
    return LocaleRows(rows, left_out)


def _rows(name: str, form: WrittenForm, n: int, rng: random.Random) -> list[dict[str, Any]]:
    question, tag, rows = QUESTIONS[name], _locale_tag(form), []
    if question.values:
        known = question.values(tag)
        values = rng.sample(known, min(n, len(known)))
    else:
        values = distinct_values(TASKS[question.drawn_like], "test", n, rng)
    for value in values:
        answer = question.answer(value, tag)
        if answer is None:
            continue
        names = {"language": language(form.code).name, "script": _script_name(form.script)}
        asked = question.asked.format(x=question.shown(value), **names)
        rows.append(_row(name, form, value, asked, answer, question.checker, "English"))
    return rows


def _own_rows(name: str, form: WrittenForm, n: int, rng: random.Random) -> list[dict[str, Any]]:
    """Rows in the phrasing that a speaker wrote and that no training row has."""
    if name not in TASKS:
        raise UserError(f"no phrasings of {name!r}: known are {', '.join(TASKS)}")
    task, code = TASKS[name], form.code
    if form.use != "main" or name not in phrasings(code):
        return []
    kept = len(phrasings(code)[name]) - 1
    found = []
    for value, phrasing in questions(task, code, "test", 2 * n, rng):
        row = make_row(task, code, "target", value, kept) if phrasing == kept else ""
        if isinstance(row, dict):
            asked, answer = (message["content"] for message in row["messages"])
            found.append(_row(name, form, value, asked, answer, row["checker"], "own"))
    return found[:n]


def _row(
    name: str, form: WrittenForm, value: Value, asked: str, answer: str, checker: str, asked_in: str
) -> dict[str, Any]:
    tag = form.code if form.use == "main" else form.tag
    shown = "-".join(str(part) for part in value.values()).replace(" ", "-")
    return {
        "id": f"{tag}/{name}/{shown}",
        "language": form.tag,
        "task": name,
        "question": asked,
        "expected": answer,
        "value": canonical(value),
        "checker": checker,
        "asked_in": asked_in,
    }


def _with_choices(rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Give each row three other rows' answers beside its own, in a drawn order."""
    answers = list(dict.fromkeys(row["expected"] for row in rows))
    if len(answers) < N_CHOICES:
        return []
    with_choices = []
    for row in rows:
        others = rng.sample([answer for answer in answers if answer != row["expected"]], N_CHOICES - 1)
        choices = rng.sample([row["expected"], *others], N_CHOICES)
        with_choices.append(row | {"choices": choices, "right": choices.index(row["expected"])})
    return with_choices


@cache
def _script_name(script: str) -> str:
    return str(Locale.parse("en").scripts[script])


def _locale_tag(form: WrittenForm) -> str:
    return form.code if form.use == "main" else form.tag
