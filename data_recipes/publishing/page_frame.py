"""The frame of every page we write: colours, style, and how text of any script stands in it.

Reads the style beside this file. A page is one file without any outside request; everything is escaped.
"""

from pathlib import Path

import regex
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_recipes.writing.graphemes import graphemes

# On a light page, and on a dark page. No two may be equal: figures are recoloured by value.
COLOURS = {
    "ink": ("#1d2733", "#e8edf2"),
    "muted": ("#5c6874", "#a3b0bd"),
    "grid": ("#dde2e7", "#35414d"),
    "base": ("#b4530a", "#f0a868"),
    "tuned": ("#0e64b0", "#74b9f5"),
}
MAX_SHOWN_GRAPHEMES = 240
MAX_SHOWN_BYTES = 3000  # one grapheme may hold any number of signs
_LETTER = regex.compile(r"\p{L}")
_RIGHT_TO_LEFT = regex.compile(r"(?=\p{L})[\p{Script=Arab}\p{Script=Hebr}]")


def page_environment(folder: Path) -> Environment:
    """Return the Jinja environment of a page whose template lies in `folder`; escapes all it is given."""
    return Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def cut_text(text: str) -> str:
    """At most so many graphemes: cut by code points, a vowel sign would lose its letter."""
    kept, n_bytes = [], 0
    # No more code points than can be shown are looked at: a text may have megabytes.
    for piece in graphemes(text[: MAX_SHOWN_BYTES + 1]):
        n_bytes += len(piece.encode("utf-8", "surrogatepass"))
        if len(kept) == MAX_SHOWN_GRAPHEMES or n_bytes > MAX_SHOWN_BYTES:
            return "".join(kept) + "…"
        kept.append(piece)
    return text


def language_attributes(text: str, tag: str) -> Markup:
    """Return the `lang` and `dir` attributes of a text in a row of the form `tag` ("ur-Arab").

    The text may be in another script than the row (an English question): it gets no `lang` then, and its
    direction goes by what most of its letters are.
    """
    script = tag.partition("-")[2]
    in_script = bool(script and regex.search(rf"(?=\p{{L}})\p{{Script={script}}}", text))
    n_right_to_left = len(_RIGHT_TO_LEFT.findall(text))
    direction = "rtl" if 2 * n_right_to_left > len(_LETTER.findall(text)) else "ltr"
    lang = Markup('lang="{}" ').format(tag) if in_script else Markup("")
    return lang + Markup('dir="{}"').format(direction)
