"""Text that comes inside Python packages: translation catalogues, read without running or importing the
package.

Reads installed packages (Django's `.po` files) and wheels on disk (Kolibri's JSON); writes nothing.
Every source says its licence, version and hash, because the manifest repeats them.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from babel.messages.pofile import read_po

from data_recipes.artefact import UserError
from data_recipes.languages import language
from data_recipes.text import normalise, script_share

_PLACEHOLDERS = ("%", "{", "<", "\n")


@dataclass(frozen=True)
class Source:
    """Where text comes from: what the licence asks to be said, and what makes a build repeatable."""

    name: str  # the distribution's name on PyPI
    licence: str  # SPDX
    what: str

    def version(self) -> str:
        """Return the installed version, or "not installed"."""
        try:
            return version(self.name)
        except PackageNotFoundError:
            return "not installed"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("babel", "Unicode-3.0", "CLDR: names, dates, times, units"),
        Source("indic-numtowords", "MIT", "number words"),
        Source("holidays", "MIT", "public holidays of India"),
        Source("django", "BSD-3-Clause", "interface strings and their translations"),
        Source("local-experts", "Apache-2.0", "our own rules and phrasings"),
    )
}


def short_strings(pairs: dict[str, str], script: str, max_characters: int) -> dict[str, str]:
    """Return the pairs fit for a short interface translation: no placeholder, whole answer in the script."""
    return {
        english: normalise(text)
        for english, text in pairs.items()
        if 2 <= len(english) <= max_characters
        and not any(mark in english for mark in _PLACEHOLDERS)
        and script_share(text, script) == 1.0
    }


@cache
def django_catalogue(code: str) -> dict[str, str]:
    """Return Django's translations into a language, English -> text; empty where Django has none.

    Fuzzy entries and entries with a context are left out: the same English has another meaning there.

    Raises:
        UserError: Django is not installed.
    """
    try:
        files = distribution("django").files or []
    except PackageNotFoundError as error:
        raise UserError(
            "the interface translations are read from Django's catalogues, and Django is not installed: "
            "pip install 'local-experts[catalogues]', or leave the task `ui` out of the recipe"
        ) from error
    pairs: dict[str, str] = {}
    for file in sorted(f for f in files if f.match(f"*/locale/{code}/LC_MESSAGES/django.po")):
        with Path(str(file.locate())).open("rb") as handle:
            for message in read_po(handle, locale=None):
                if message.id and not (message.fuzzy or message.context or message.pluralizable):
                    pairs.setdefault(str(message.id), str(message.string))
    return {english: text for english, text in pairs.items() if text}


@cache
def interface_strings(code: str, max_characters: int = 40) -> dict[str, str]:
    """Return short interface strings of a language, English -> translation, from Django's catalogues."""
    return short_strings(django_catalogue(code), language(code).script, max_characters)


def kolibri_catalogue(wheel: Path, locale: str) -> dict[str, str]:
    """Return Kolibri's messages of one locale ("hi_IN") from its wheel (MIT), message id -> text.

    Raises:
        UserError: the wheel is missing, damaged, or holds nothing of this locale.
    """
    messages: dict[str, str] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(f"kolibri/locale/{locale}/LC_MESSAGES/")]
            for name in sorted(n for n in names if n.endswith(".json")):
                messages |= json.loads(archive.read(name))
        if not messages:
            raise ValueError(f"it holds no messages of {locale}")
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"cannot read the Kolibri wheel {wheel}: {error}; fetch it with "
            f"`pip download --no-deps kolibri==0.19.5 -d {wheel.parent}` (`make base` does that)"
        ) from error
    return messages
