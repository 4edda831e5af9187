"""How often words are romanised as people type them: ours beside libraries; told on standard output.

Usage: PYTHONPATH=.:FOLDER_OF_LIBRARIES python tests/romanisation_agreement.py
A library that is not installed is left out. `words` is the share of words that meet a common spelling,
`letters` the mean of 1 - edit distance / length, to the nearest of them.
"""

import importlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

import yaml
from anyascii import anyascii

from data_recipes.variants.romanisation import romanise_word
from data_recipes.writing.written_forms import written_form

HERE = Path(__file__).parent
Romaniser = Callable[[str, str, str], str]  # a word, the code of its language, its script
INDIC = {
    "Deva": "devanagari", "Beng": "bengali", "Guru": "gurmukhi", "Gujr": "gujarati",
    "Taml": "tamil", "Telu": "telugu", "Knda": "kannada", "Mlym": "malayalam",
}  # fmt: skip


def read_words(name: str) -> dict[str, dict[str, str]]:
    """Return the words of a golden file: language -> word -> spellings."""
    found = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return found.get("words", found)


def agreement(words: dict[str, str], romaniser: Romaniser, code: str) -> tuple[float, float]:
    """Return the share of words that meet a spelling, and the mean agreement of letters."""
    script = written_form(code).script
    likeness = [
        max(_likeness(romaniser(word, code, script), spelling) for spelling in spellings.split("|"))
        for word, spellings in words.items()
    ]
    return sum(value == 1 for value in likeness) / len(likeness), sum(likeness) / len(likeness)


def _likeness(ours: str, theirs: str) -> float:
    row = list(range(len(theirs) + 1))
    for i, a in enumerate(ours, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(theirs, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return 1 - row[-1] / max(len(ours), len(theirs))


def romanisers() -> dict[str, Romaniser]:
    """Return ours and those of the libraries that are installed."""
    found: dict[str, Romaniser] = {
        "ours": romanise_word,
        "anyascii": lambda word, code, script: anyascii(word).lower(),
    }
    try:
        sanscript = importlib.import_module("indic_transliteration.sanscript")
        for scheme in ("itrans", "optitrans", "iso"):
            found[f"indic-transliteration {scheme}"] = lambda word, code, script, scheme=scheme: _plain(
                sanscript.transliterate(word, INDIC[script], scheme)
            )
    except ImportError:
        pass
    try:
        uroman = importlib.import_module("uroman").Uroman()
        found["uroman"] = lambda word, code, script: uroman.romanize_string(word).lower()
    except ImportError:
        pass
    return found


def _plain(text: str) -> str:
    return "".join(sign for sign in unicodedata.normalize("NFD", text) if sign.isascii()).lower()


if __name__ == "__main__":
    for file in ("romanised_words.yaml", "romanised_unseen.yaml"):
        for name, romaniser in romanisers().items():
            pairs = {code: agreement(words, romaniser, code) for code, words in read_words(file).items()}
            shown = " ".join(f"{code} {exact:.2f}/{letters:.2f}" for code, (exact, letters) in pairs.items())
            n = len(pairs)
            means = [sum(pair[side] for pair in pairs.values()) / n for side in (0, 1)]
            print(f"{file} {name}: words {means[0]:.3f} letters {means[1]:.3f}: {shown}")
