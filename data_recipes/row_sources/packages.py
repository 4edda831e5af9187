"""Names and facts that packages hold in many languages, as rows: CLDR through Babel, holidays of India.

Reads `babel` and `holidays`; writes nothing. Rows have the form of a translation, English name to own name;
`tasks` makes other questions of the same facts. A language that a package does not cover is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from babel import Locale
from babel.core import UnknownLocaleError

from data_recipes import locale_facts
from data_recipes.artefact import UserError
from data_recipes.languages import language as known_language
from data_recipes.row_sources.catalogues import Pair, pair_row
from data_recipes.row_sources.options import DEFAULT_PHRASING, language_problems, phrasing_problems
from data_recipes.row_sources.provenance import Provenance
from data_recipes.sources import SOURCES
from data_recipes.steps import Rejected, Row
from data_recipes.text import script_share

STEP = "source"
Facts = Literal["territories", "languages", "scripts", "currencies", "months", "days", "holidays"]


@dataclass(frozen=True, kw_only=True)
class PackageOptions:
    """Names of one kind in one language."""

    facts: Facts
    language: str
    years: tuple[int, ...] = (2024, 2025, 2026, 2027, 2028)  # of holidays
    phrasing: str = DEFAULT_PHRASING  # {x} is the English name, {language} the language's English name
    script: str = ""  # ISO 15924; empty: the usual one of the language. Names in another are rejected.

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = language_problems(self.language, self.script) + phrasing_problems(self.phrasing)
        if self.language == "en":
            wrong.append("language: en is the language the names are asked in; name another one")
        if self.facts == "holidays" and not self.years:
            wrong.append("years: name at least one")
        return wrong


def read(options: PackageOptions) -> Iterator[Row | Rejected]:
    """Yield one row a name, in the order of the package's keys (codes, dates).

    Raises:
        UserError: the package has no names in this language.
    """
    package = "holidays" if options.facts == "holidays" else "babel"
    said = SOURCES[package]  # not the package's own licence: what is read through Babel is CLDR's
    provenance = Provenance(
        package, said.version(), said.licence, "our table of sources", f"{said.what} ({package})"
    )
    if package == "babel":
        own, english = _babel_names(options.language, options.facts), _babel_names("en", options.facts)
    else:
        own, english = _holidays(options.language, options.years), _holidays("en", options.years)
    if not own:
        raise UserError(
            f"unsupported: {package} {said.version()} has no {options.facts} in "
            f"{known_language(options.language).name}; leave this source out"
        )
    script = options.script or known_language(options.language).script
    for key, name in own.items():
        place = f"{options.facts}/{options.language}/{key}"
        where = f"{package}/{place}"
        if key not in english:
            yield Rejected(where, STEP, "no English name", where)
        elif script_share(name, script) < 1.0:
            yield Rejected(where, STEP, "another script", f"{where}: not wholly in {script}")
        else:
            yield pair_row(Pair(english[key], name, place, {"key": key}), provenance, options)


def _babel_names(code: str, facts: str) -> dict[str, str]:
    try:
        locale = Locale.parse(code)
    except (UnknownLocaleError, ValueError):
        return {}
    if facts in ("months", "days"):
        names = getattr(locale, facts)["stand-alone"]["wide"]
    else:
        names = getattr(locale, facts)
    return {str(key): str(name) for key, name in sorted(names.items(), key=lambda item: str(item[0]))}


def _holidays(code: str, years: tuple[int, ...]) -> dict[str, str]:
    return {
        day: name for year in sorted(years) for day, name in locale_facts.india_holidays(year, code).items()
    }
