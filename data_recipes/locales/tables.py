"""What each tag's formatters and parsers stand on: Babel locale, digits, scale words, overrides.

Reads Babel's data and `overrides.yaml` beside this file, where each entry has its source; writes
nothing. The tags are the 22 scheduled languages as they are written in India, `en-IN` and `hi-Latn`.
"""

from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from babel import Locale

from data_recipes.artefact import UserError
from data_recipes.languages import SCHEDULED
from data_recipes.text import normalise, script_share
from data_recipes.writing.digits import NUMBERING_SYSTEMS
from data_recipes.writing.written_forms import WrittenForm, tool_label, written_form

TAGS: tuple[str, ...] = ("en-IN", *SCHEDULED, "hi-Latn")
SCALE_VALUES: dict[str, int] = {
    "thousand": 10**3,
    "lakh": 10**5,
    "crore": 10**7,
    "arab": 10**9,
    "kharab": 10**11,
    "lakh_crore": 10**12,
}
MAX_DIGITS = 60


@dataclass(frozen=True)
class Scale:
    """A power of ten with a name of its own: lakh, crore."""

    value: int
    one: str  # after exactly 1
    other: str
    also: tuple[str, ...]  # read in an answer, never written
    source: str
    weak: bool  # vouched for by one doubtful source and everyday use


def canonical_tag(tag: str) -> str:
    """Return the tag under which the tables know a written form: "en" is "en-IN", "hi-Deva" is "hi".

    Raises:
        UserError: no such tag; the message names the nearest one.
    """
    if tag in TAGS:
        return tag
    with suppress(UserError):
        if known := _tags().get(written_form(tag).tag):
            return known
    nearest = get_close_matches(str(tag), TAGS, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise UserError(f"no locale facts for the tag {tag!r}: {hint}known tags are {', '.join(TAGS)}")


def language_code(tag: str) -> str:
    """Return the code under which `languages` and `locale_facts` know a tag's language: "en" of "en-IN".

    "hi-Latn" stays as it is: what they know is written in Devanagari.

    Raises:
        UserError: as `canonical_tag`.
    """
    return "en" if canonical_tag(tag) == "en-IN" else canonical_tag(tag)


@cache
def _tags() -> dict[str, str]:
    return {_form(tag).tag: tag for tag in TAGS}


def _form(tag: str) -> WrittenForm:
    return written_form(tag.removesuffix("-IN"))


@cache
def overrides() -> dict[str, Any]:
    """Return the override table as it stands in its file."""
    path = files("data_recipes.locales") / "overrides.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def override(section: str, tag: str) -> Any:
    """Return a tag's entry in a section of the override table; `None` where it has none."""
    return overrides()[section].get(canonical_tag(tag))


@cache
def babel_locale(tag: str) -> Locale:
    """Return Babel's locale of a tag, as the language is written in India."""
    return Locale.parse(tool_label(_form(canonical_tag(tag)).tag, "babel"))


@cache
def script_of(tag: str) -> str:
    """Return the ISO 15924 code of the script that a tag's facts are written in."""
    return _form(canonical_tag(tag)).script


@cache
def digit_systems_of(tag: str) -> tuple[str, ...]:
    """Return the numbering systems of a tag: the one CLDR writes first, then its native one, then ASCII."""
    locale = babel_locale(tag)
    systems = (locale.default_numbering_system, locale.other_numbering_systems.get("native"), "latn")
    return tuple(dict.fromkeys(str(name) for name in systems if name in NUMBERING_SYSTEMS))


def digit_system(tag: str, digits: str | None) -> str:
    """Return the numbering system to write in: `digits`, or without it the one CLDR writes in.

    Raises:
        UserError: the language is not written in those digits.
    """
    systems = digit_systems_of(tag)
    if digits is not None and digits not in systems:
        raise UserError(f"{tag} is not written in the digits {digits!r}: choose one of {', '.join(systems)}")
    return digits or systems[0]


@cache
def scales(tag: str) -> tuple[Scale, ...]:
    """Return a tag's scale words, the largest first; empty where no checked source has lakh and crore."""
    found = []
    for name, entry in (override("scales", tag) or {}).items():
        other = normalise(entry["other"])
        one = normalise(entry.get("one", other))
        also = tuple(normalise(word) for word in entry.get("also", ()))
        weak = entry.get("weak", False)
        found.append(Scale(SCALE_VALUES[name], one, other, also, entry["source"], weak))
    return tuple(sorted(found, key=lambda scale: -scale.value))


def put_right(text: str, tag: str) -> str:
    """Return Babel's text in normal form, with the spellings that the override table corrects."""
    for entry in override("spellings", tag) or ():
        text = text.replace(entry["wrong"], entry["right"])
    return normalise(text)


def in_own_script(text: str, tag: str) -> bool:
    """Return whether every letter of a text is of the tag's script; a text without letters is."""
    return not any(c.isalpha() for c in text) or script_share(text, script_of(tag)) == 1.0


def exact(value: int | Decimal) -> Decimal:
    """Return a value as a decimal number.

    Raises:
        UserError: a float, whose digits are not those that were written; not a finite number; or one with
            more than `MAX_DIGITS` digits before or after its point.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not Decimal(value).is_finite():
        raise UserError(
            f"{value!r} is not an exact number: pass an int, or a Decimal made of text, Decimal('0.1')"
        )
    number = Decimal(value)
    if number.adjusted() >= MAX_DIGITS or int(number.as_tuple().exponent) < -MAX_DIGITS:
        raise UserError(
            f"a number of more than {MAX_DIGITS} digits before or after its point is no amount: {number:.3e}"
        )
    return number
