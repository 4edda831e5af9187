"""The written forms of each language: its scripts, their digits, and what each tool calls them.

Reads languages.yaml beside this file and, for plurals and default digits, CLDR through Babel; writes nothing.
A form is a language in a script; its name is the BCP 47 tag with the script always there: "hi-Deva",
"hi-Latn". What a tool does not cover is an error that says so, never another language's or script's facts.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

import regex
import yaml

from data_recipes.artefact import UserError
from data_recipes.languages import LANGUAGES, language
from data_recipes.writing.digits import NUMBERING_SYSTEMS

UNSUPPORTED = "unsupported"
TOOLS = (
    "babel",
    "flores_200",
    "flores_plus",
    "holidays",
    "indic_numtowords",
    "indictrans2",
    "lid_176",
    "presidio",
    "sacrebleu",
)
Use = Literal["main", "also", "old", "romanised"]


@dataclass(frozen=True)
class WrittenForm:
    """A language in one script. `digits` is CLDR's name of its own digits, None where it has none."""

    code: str
    script: str
    use: Use
    source: str
    digits: str | None
    tools: MappingProxyType[str, str]  # only the tools that cover the form; ask `tool_label`

    @property
    def tag(self) -> str:
        """The BCP 47 tag: language and script."""
        return f"{self.code}-{self.script}"


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((files("data_recipes.writing") / "languages.yaml").read_text(encoding="utf-8"))


@cache
def forms() -> dict[str, WrittenForm]:
    """Return all written forms by tag, each language's main one first and its romanisation last."""
    table, found = _table(), {}
    assert table["languages"].keys() == LANGUAGES.keys()
    for code, row in table["languages"].items():
        listed = {"Latn": {"use": "romanised", "source": "transcription"}} | row["forms"]
        for script in [*row["forms"], *(listed.keys() - row["forms"].keys())]:
            facts = dict(listed[script])
            use, source = facts.pop("use"), facts.pop("source")
            digits = facts.pop("digits", table["scripts"][script].get("digits"))
            assert set(facts) <= set(TOOLS), (code, script, facts)
            form = WrittenForm(code, script, use, source, digits, MappingProxyType(facts))
            found[form.tag] = form
    return found


def forms_of(code: str) -> tuple[WrittenForm, ...]:
    """Return the written forms of a language, the main one first.

    Raises:
        UserError: an unknown language.
    """
    return tuple(form for form in forms().values() if form.code == language(code).code)


def written_form(tag: str) -> WrittenForm:
    """Return the form of a tag: "ks-Deva"; a language alone, "ks", is its main form.

    Raises:
        UserError: an unknown language, or a script that the language is not known to be written in.
    """
    code, _, script = str(tag).partition("-")
    if not script:
        return forms_of(code)[0]
    known = [form.tag for form in forms_of(code)]
    if tag in known:
        return forms()[tag]
    nearest = get_close_matches(tag.lower(), [name.lower() for name in known], n=1)
    hint = f"did you mean {next(n for n in known if n.lower() == nearest[0])!r}? " if nearest else ""
    raise UserError(
        f"unknown written form {tag!r}: {hint}{language(code).name} is written as {', '.join(known)}"
    )


def form_of_label(label: str) -> WrittenForm:
    """Return the form that a label of a data set means: "npi_Deva", "gom", "ory_Orya", "hi-Latn", "kas_Arab".

    The language may be BCP 47, ISO 639-3 or an individual language of a macrolanguage; without a script it is
    the main form.

    Raises:
        UserError: nothing of that name.
    """
    name, _, script = regex.sub("_", "-", label, count=1).partition("-")
    rows = _table()["languages"].items()
    codes = [code for code, row in rows if name in {code, row["iso639_3"], *row.get("individual", [])}]
    if not codes:
        raise UserError(f"no language has the label {label!r}: use a BCP 47 tag, {', '.join(LANGUAGES)}")
    return written_form(f"{codes[0]}-{script}" if script else codes[0])


def iso_639_3(code: str) -> str:
    """Return the ISO 639-3 code of a language; that of the macrolanguage for doi, kok, ne, or and sa.

    Raises:
        UserError: an unknown language.
    """
    return _table()["languages"][language(code).code]["iso639_3"]


def individual_languages(code: str) -> tuple[str, ...]:
    """Return the ISO 639-3 codes that data sets use instead of a macrolanguage's; empty for most languages.

    Raises:
        UserError: an unknown language.
    """
    return tuple(_table()["languages"][language(code).code].get("individual", ()))


def coverage(tag: str) -> dict[str, str]:
    """Return each tool's label of a form, or "unsupported", for a report. For use, take `tool_label`."""
    form = written_form(tag)
    return {tool: form.tools.get(tool, UNSUPPORTED) for tool in TOOLS}


def covers(tag: str, tool: str) -> bool:
    """Return whether a tool covers a form.

    Raises:
        UserError: an unknown form or tool.
    """
    if tool not in TOOLS:
        raise UserError(f"unknown tool {tool!r}: the registry knows {', '.join(TOOLS)}")
    return tool in written_form(tag).tools


def tool_label(tag: str, tool: str) -> str:
    """Return what a tool calls a form: `tool_label("kok", "flores_plus")` is "gom_Deva".

    Raises:
        UserError: the tool does not cover the form; an unknown form or tool.
    """
    form = written_form(tag)
    if covers(tag, tool):
        return form.tools[tool]
    others = [other.tag for other in forms_of(form.code) if tool in other.tools]
    instead = f"it covers {', '.join(others)}" if others else "it covers no form of this language"
    raise UserError(
        f"unsupported: {tool} does not cover {language(form.code).name} in {form.script} ({form.tag}); "
        f"{instead}"
    )


def native_digits(tag: str) -> str:
    """Return the form's own ten digits, zero first; ASCII for Latin script.

    Raises:
        UserError: the script has none; an unknown form.
    """
    form = written_form(tag)
    if form.digits is None:
        raise UserError(f"unsupported: {form.tag} has no digits of its own in Unicode; use ASCII digits")
    return NUMBERING_SYSTEMS[form.digits]


def default_digits(tag: str) -> str:
    """Return the CLDR numbering system that the locale writes numbers in by default: "latn" for Hindi.

    Raises:
        UserError: Babel does not cover the form.
    """
    from babel import Locale

    return str(Locale.parse(tool_label(tag, "babel")).default_numbering_system)


def plural_categories(tag: str) -> tuple[str, ...]:
    """Return the form's cardinal plural categories in CLDR's order, "other" last.

    Raises:
        UserError: Babel does not cover the form, or its CLDR has no plural rules for the language (Babel
            2.18: kok, mai, mni, sa); Babel itself answers "other" then, as if there were no plural.
    """
    from babel import Locale

    categories = Locale.parse(tool_label(tag, "babel")).plural_form.tags
    if not categories:
        raise UserError(f"unsupported: Babel has no plural rules for {tag}")
    order = ("zero", "one", "two", "few", "many")
    return (*(category for category in order if category in categories), "other")
