"""Which facts each tag has, where they come from, and which locale tasks they could serve.

Asks the formatters themselves, so that the table cannot promise what they do not give. Writes
`coverage.md` beside this file when asked: `python -m data_recipes.locales.coverage`.
"""

import datetime
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from data_recipes.locale_facts import UNITS, rupees_in_scales
from data_recipes.locales import dates, numbers, words
from data_recipes.locales.tables import (
    TAGS,
    babel_locale,
    canonical_tag,
    digit_systems_of,
    language_code,
    override,
    overrides,
    scales,
)

Source = Literal["CLDR", "override", "indic-numtowords", "holidays", "unsupported"]
_DAY = datetime.date(2026, 8, 14)
_IN_LAKHS = (3, 2)  # Babel's grouping of 1,87,500
_MANY_NAMES = 150  # fewer names than this are a handful, not the countries or languages of the world


def _all_units(tag: str) -> list[str] | None:
    written = [words.format_unit(5, unit, tag) for unit in UNITS.values()]
    return None if None in written else [str(text) for text in written]


def _all_hours(tag: str) -> list[str] | None:
    written = [dates.format_time(hour, 30, tag, "words") for hour in range(24)]
    return None if None in written else [str(text) for text in written]


# A fact and what the formatters give for it: nothing (None or empty) is unsupported.
FACTS: dict[str, Callable[[str], Any]] = {
    "number": lambda tag: numbers.format_number(Decimal("187500.5"), tag),
    "native_digits": lambda tag: [name for name in digit_systems_of(tag) if name != "latn"],
    "rupees": lambda tag: numbers.format_rupees(187_500, tag),
    "rupee_name": words.rupee_name,
    "compact": lambda tag: numbers.format_compact(187_500, tag),
    "rupees_in_scales": lambda tag: rupees_in_scales(187_500, language_code(tag)),
    "number_words": lambda tag: words.format_in_words(187_500, tag),
    "date_full": lambda tag: dates.format_date(_DAY, tag, "full"),
    "date_long": lambda tag: dates.format_date(_DAY, tag, "long"),
    "date_medium": lambda tag: dates.format_date(_DAY, tag, "medium"),
    "date_short": lambda tag: dates.format_date(_DAY, tag, "short"),
    "month_names": dates.month_names,
    "weekday_names": dates.weekday_names,
    "time_24": lambda tag: dates.format_time(17, 45, tag, "24"),
    "time_12": lambda tag: dates.format_time(17, 45, tag, "12"),
    "time_words": _all_hours,
    "duration": lambda tag: words.format_duration(3, 20, tag),
    "unit": _all_units,
    "territory_names": lambda tag: len(words.territory_names(tag)) >= _MANY_NAMES,
    "language_names": lambda tag: len(words.language_names(tag)) >= _MANY_NAMES,
    "holiday_names": lambda tag: words.holiday_names(_DAY.year, tag),
}
# What a task asks a language for; `ui` asks for Django's catalogue and for no fact of a locale.
TASK_FACTS: dict[str, str] = {
    "date": "date_long",
    "time": "time_words",
    "duration": "duration",
    "rupees": "rupees",
    "rupees_words": "rupees_in_scales",
    "number_words": "number_words",
    "unit": "unit",
    "holiday": "holiday_names",
    "territory": "territory_names",
    "language_name": "language_names",
}


def _corrected(fact: str, tag: str) -> bool:
    """Return whether the override table has a hand in a fact that Babel alone would get wrong."""
    locale = babel_locale(tag)
    if fact == "number":
        return locale.decimal_formats[None].grouping != _IN_LAKHS
    if fact == "rupees":
        in_lakhs = locale.currency_formats["standard"].grouping == _IN_LAKHS
        return not in_lakhs or override("rupee_pattern", tag) is not None
    if fact == "compact":
        patterns = locale.compact_decimal_formats.get("long", {}).get("other", {})
        babels = {value: str(pattern.pattern).lstrip("0 ") for value, pattern in patterns.items()}
        return any(babels.get(str(scale.value)) != scale.other for scale in scales(tag))
    if fact in ("time_12", "time_words"):
        section = "day_halves" if fact == "time_12" else "day_period_rules"
        return override(section, tag) is not None
    return any(fact in entry["facts"] for entry in override("spellings", tag) or ())


@cache
def source_of(fact: str, tag: str) -> Source:
    """Return where a tag's fact comes from: CLDR by Babel, the override table, a package, or nowhere.

    Raises:
        UserError: an unknown tag.
    """
    tag = canonical_tag(tag)
    if not FACTS[fact](tag):
        return "unsupported"
    if fact == "holiday_names":
        return "holidays"
    if fact == "number_words":
        return "override" if "spellings" in override("number_words", tag) else "indic-numtowords"
    # The scale words of locale_facts were written by hand.
    return "override" if fact == "rupees_in_scales" or _corrected(fact, tag) else "CLDR"


def supported_facts(tag: str) -> dict[str, bool]:
    """Return for each fact whether a tag has it from a checked source.

    Raises:
        UserError: an unknown tag.
    """
    return {fact: source_of(fact, tag) != "unsupported" for fact in FACTS}


def task_reach(tag: str) -> dict[str, str]:
    """Return for each locale task whether it can be asked in a language, and what is missing if not.

    "yes": facts and phrasings are there. "phrasings": only somebody who speaks the language is missing.
    "no": the fact has no checked source, or its task would answer from an unchecked one.

    Raises:
        UserError: an unknown tag.
    """
    tag = canonical_tag(tag)
    asked = (files("data_recipes") / "phrasings" / f"{language_code(tag)}.yaml").is_file()
    facts, answered = supported_facts(tag), "yes" if asked else "phrasings"
    return {task: answered if facts[fact] else "no" for task, fact in TASK_FACTS.items()}


def _table(header: str, columns: list[str], cell: Callable[[str, str], str]) -> list[str]:
    rows = [f"| {tag} | " + " | ".join(cell(column, tag) for column in columns) + " |" for tag in TAGS]
    return [f"| {header} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|", *rows]


def coverage_page() -> str:
    """Return the page of coverage in Markdown: tags by facts, then tags by tasks."""
    reach = {tag: task_reach(tag) for tag in TAGS}
    weak = [f"{tag} {scale.other}" for tag in TAGS for scale in reversed(scales(tag)) if scale.weak]
    refused = [f"- {tag}: {why}" for tag, why in overrides()["scales_unsupported"].items()]
    for tag, facts in overrides()["withheld"].items():
        refused += [f"- {tag}, {fact}: {why}" for fact, why in facts.items()]
    lines = [
        "# Locale facts by language",
        "",
        "Written by `python -m data_recipes.locales.coverage`; a test holds it to the code. CLDR: as Babel",
        "has it. override: from `overrides.yaml`, with its source there, or written by hand in",
        "`locale_facts.py`. unsupported: no checked source, so nothing is written, least of all in another",
        "language.",
        "No row has been reviewed by a speaker of its language yet.",
        "",
        *_table("tag", list(FACTS), source_of),
        "",
        "## Why not",
        "",
        *refused,
        "",
        f"Scale words that one source and everyday use vouch for: {', '.join(weak)}.",
        "",
        "## Which locale tasks they could serve",
        "",
        "yes: facts and phrasings are there. phrasings: a speaker must write `phrasings/<language>.yaml`.",
        "no: no checked fact. `ui` depends on Django's catalogues alone. A recipe names a code of",
        "`languages.py`: `hi-Latn` is not one.",
        "",
        *_table("tag", list(TASK_FACTS), lambda task, tag: reach[tag][task]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("coverage.md").write_text(coverage_page(), encoding="utf-8")
