"""The locale tasks: what is asked, what is right, and how an answer is checked.

Reads the facts of `locale_facts` and `sources` and the phrasings beside this file; writes nothing.
A *generalise* task has a large space of values (dates, amounts): it is split by value, so that a test answer
cannot be read off a training row. A *remember* task is a list of facts (names): it is asked again in a
phrasing kept for testing, because a name that was never shown cannot be known.
"""

import datetime
import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from data_recipes import locale_facts, sources
from data_recipes.artefact import UserError
from data_recipes.languages import language
from data_recipes.text import normalise
from data_recipes.writing.digits import fold_digits

Value = dict[str, Any]  # what a row is about, in plain JSON: {"date": "2026-03-14"}
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

FIRST_YEAR, N_YEARS = 1950, 100
HOLIDAY_YEARS = range(2024, 2029)
MAX_RUPEES = 99_999_999  # eight digits: up to nine crore


@dataclass(frozen=True)
class Task:
    """One kind of question. `values` lists facts to remember; `draw` makes values to generalise from."""

    name: str
    kind: Literal["generalise", "remember"]
    source: str  # a key of `sources.SOURCES`
    question: Callable[[Value, str], str]  # what stands for {x} in a phrasing
    answer: Callable[[Value, str], str | None]  # the right answer in a language, or None
    draw: Callable[[random.Random], Value] | None = None
    values: Callable[[str], list[Value]] | None = None


def _day(value: Value) -> datetime.date:
    return datetime.date.fromisoformat(value["date"])


def _draw_date(rng: random.Random) -> Value:
    start = datetime.date(FIRST_YEAR, 1, 1).toordinal()
    end = datetime.date(FIRST_YEAR + N_YEARS, 1, 1).toordinal()
    return {"date": datetime.date.fromordinal(rng.randrange(start, end)).isoformat()}


def _draw_rupees(rng: random.Random) -> Value:
    # Uniform in the number of digits: a uniform draw would hardly ever show a lakh.
    return {"rupees": int(math.exp(rng.uniform(math.log(1_000), math.log(MAX_RUPEES))))}


def _draw_unit(rng: random.Random) -> Value:
    return {"amount": rng.randrange(2, 1000), "unit": rng.choice(sorted(locale_facts.UNITS))}


def _name_question(names: Callable[[str], dict[str, str]]) -> Callable[[Value, str], str]:
    # English is asked by code: "Which country has the code FR?"; the others by the English name.
    return lambda value, code: value["code"] if code == "en" else names("en")[value["code"]]


def _name_values(names: Callable[[str], dict[str, str]]) -> Callable[[str], list[Value]]:
    def values(code: str) -> list[Value]:
        known, english = names(code), names("en")
        return [{"code": key} for key in sorted(known) if key in english]

    return values


_TASKS = (
    Task(
        "date",
        "generalise",
        "babel",
        question=lambda value, code: value["date"],
        answer=lambda value, code: locale_facts.long_date(_day(value), code),
        draw=_draw_date,
    ),
    Task(
        "time",
        "generalise",
        "babel",
        question=lambda value, code: f"{value['hour']:02d}:{value['minute']:02d}",
        answer=lambda value, code: locale_facts.day_time(value["hour"], value["minute"], code),
        draw=lambda rng: {"hour": rng.randrange(24), "minute": rng.randrange(60)},
    ),
    Task(
        "duration",
        "generalise",
        "babel",
        question=lambda value, code: f"{value['hours']} h {value['minutes']} min",
        answer=lambda value, code: locale_facts.duration(value["hours"], value["minutes"], code),
        draw=lambda rng: {"hours": rng.randrange(2, 48), "minutes": rng.randrange(2, 60)},
    ),
    Task(
        "rupees",
        "generalise",
        "local-experts",
        question=lambda value, code: str(value["rupees"]),
        answer=lambda value, code: locale_facts.rupees(value["rupees"]),
        draw=_draw_rupees,
    ),
    Task(
        "rupees_words",
        "generalise",
        "local-experts",
        question=lambda value, code: str(value["rupees"]),
        answer=lambda value, code: locale_facts.rupees_in_scales(value["rupees"], code),
        draw=_draw_rupees,
    ),
    Task(
        "number_words",
        "generalise",
        "indic-numtowords",
        question=lambda value, code: str(value["number"]),
        answer=lambda value, code: locale_facts.number_words(value["number"], code),
        draw=lambda rng: {"number": rng.randrange(100, 10_000)},
    ),
    Task(
        "unit",
        "generalise",
        "babel",
        question=lambda value, code: f"{value['amount']} {value['unit']}",
        answer=lambda value, code: locale_facts.amount_of(
            value["amount"], locale_facts.UNITS[value["unit"]], code
        ),
        draw=_draw_unit,
    ),
    Task(
        "holiday",
        "remember",
        "holidays",
        question=lambda value, code: value["date"],
        answer=lambda value, code: locale_facts.india_holidays(_day(value).year, code).get(value["date"]),
        values=lambda code: [
            {"date": day} for year in HOLIDAY_YEARS for day in sorted(locale_facts.india_holidays(year, code))
        ],
    ),
    Task(
        "territory",
        "remember",
        "babel",
        question=_name_question(locale_facts.territories),
        answer=lambda value, code: locale_facts.territories(code).get(value["code"]),
        values=_name_values(locale_facts.territories),
    ),
    Task(
        "language_name",
        "remember",
        "babel",
        question=_name_question(locale_facts.language_names),
        answer=lambda value, code: locale_facts.language_names(code).get(value["code"]),
        values=_name_values(locale_facts.language_names),
    ),
    Task(
        "ui",
        "remember",
        "django",
        question=lambda value, code: value["english"],
        answer=lambda value, code: sources.interface_strings(code).get(value["english"]),
        values=lambda code: [{"english": text} for text in sorted(sources.interface_strings(code))],
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
# The answer of `rupees` is digits and a sign, the same in every language: not an answer in a language's own
# words.
TASKS_WITHOUT_OWN_WORDS = frozenset({"rupees"})

# The checker of test rows that come from sources: their value holds the one answer that is right.
REFERENCE = "reference"


@cache
def known_values(name: str, code: str) -> tuple[Value, ...]:
    """Return the facts of a *remember* task in a language; empty for a *generalise* task."""
    values = TASKS[name].values
    return tuple(values(code)) if values else ()


def canonical(value: Value) -> str:
    """Return a value as canonical JSON, the form in which rows carry it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def split_of(task: str, value: Value) -> Split:
    """Return the split a value belongs to, the same in every language and every run: 80, 10 and 10 %.

    Decided by the hash of task and value, so that no value asked about in a test, in any language, was ever
    in a training row of the base or of a recipe.
    """
    share = int(hashlib.sha256(f"{task}:{canonical(value)}".encode()).hexdigest()[:8], 16) % 100
    return "train" if share < 80 else "validation" if share < 90 else "test"


@cache
def phrasings(code: str) -> dict[str, list[str]]:
    """Return the phrasings of each task in a language; the last of each is kept for testing.

    Raises:
        UserError: nobody has written phrasings in that language yet.
    """
    path = files("data_recipes") / "phrasings" / f"{language(code).code}.yaml"
    if not path.is_file():
        raise UserError(
            f"no phrasings in {language(code).name}: write data_recipes/phrasings/{code}.yaml after the "
            "example of hi.yaml (one list of sentences a task, the last one kept for testing)"
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check(checker: str, language: str, value: str, answer: str) -> bool:
    """Return whether `answer` is right, recomputed from the row's value and never from its stored answer.

    White space and Unicode form do not matter, nor the script of the digits; everything else does.

    Args:
        checker: the name of a task, or REFERENCE.
        language: code of the language that the answer must be in.
        value: canonical JSON, as in the row's column `value`.

    Raises:
        UserError: an unknown checker.
    """
    if checker == REFERENCE:
        expected = json.loads(value)["answer"]
    elif checker in TASKS:
        expected = TASKS[checker].answer(json.loads(value), language)
    else:
        raise UserError(f"unknown checker {checker!r}: known are {REFERENCE}, {', '.join(TASKS)}")
    return expected is not None and fold_digits(normalise(answer)) == fold_digits(normalise(expected))
