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
    letters = regex.findall(r"\p{L}", text)
    own = regex.compile(rf"\p{{Script={script}}}") if script else None
    in_script = own is not None and any(own.match(letter) for letter in letters)
    n_right_to_left = sum(bool(regex.match(r"[\p{Script=Arab}\p{Script=Hebr}]", one)) for one in letters)
    direction = "rtl" if 2 * n_right_to_left > len(letters) else "ltr"
    lang = Markup('lang="{}" ').format(tag) if in_script else Markup("")
    return lang + Markup('dir="{}"').format(direction)
