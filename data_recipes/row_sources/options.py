"""Checks that the options of several sources share, each giving problems as "key: reason".

Reads nothing, writes nothing.
"""

from __future__ import annotations

from data_recipes.artefact import UserError
from data_recipes.languages import language as known_language
from data_recipes.screening.licences import spdx
from data_recipes.writing.written_forms import written_form

MAX_RECORD_BYTES = 8 << 20  # a row of 128k tokens in an Indic script is under 2 MB
DEFAULT_PHRASING = "Translate into {language}: {x}"


def language_problems(language: str, script: str) -> list[str]:
    """Problems of a language's code and of the script (ISO 15924) it is written in, which may be empty."""
    try:
        known_language(language)
    except UserError as error:
        return [f"language: {error}"]
    try:
        written_form(f"{language}-{script}" if script else language)
    except UserError as error:
        return [f"script: {error}"]
    return []


def licence_problems(licence: str) -> list[str]:
    """Problems of an SPDX expression that must be there."""
    if not licence:
        return ["licence: must say the SPDX licence of the rows, as CC-BY-4.0"]
    try:
        spdx(licence)
    except UserError as error:
        return [f"licence: {error}"]
    return []


def instruction_problems(form: str, question_key: str, answer_key: str) -> list[str]:
    """Problems of how records are read as messages."""
    if bool(question_key) != bool(answer_key):
        return ["question_key: set question_key and answer_key together"]
    if question_key and form != "auto":
        return [f"form: {form} and question_key exclude each other; leave form out"]
    return []


def phrasing_problems(phrasing: str) -> list[str]:
    """Problems of the sentence that asks for a translation."""
    return [] if "{x}" in phrasing else ["phrasing: must hold {x}, which stands for the English text"]
