"""Rows for measuring speed: those of the shipped recipes, and paragraphs in nine languages.

Reads the recipes' facts and Django's catalogues; writes nothing. The paragraphs are sentences that people
translated, put together at random: the texts are real, their order is not. Some rows hold personal data, some
are copies of others, some copies with a word more.
"""

import random
from typing import Any

from data_recipes.screening.comparison import contents
from data_recipes.sources import django_catalogue
from data_recipes.steps import Row
from data_recipes.writing.digits import NUMBERING_SYSTEMS
from tests.safety_speed import recipe_rows

LANGUAGES = {
    "hi": "Deva", "mr": "Deva", "ne": "Deva", "bn": "Beng", "ta": "Taml", "te": "Telu", "kn": "Knda",
    "ml": "Mlym", "ur": "Arab",
}  # fmt: skip
MIN_LETTERS = 12  # of a sentence: "Yes" and "No" make no paragraph
SHARE_PERSONAL, SHARE_COPIED, SHARE_ALIKE = 0.05, 0.03, 0.03


def paragraph_rows(n_rows: int, seed: int = 0) -> list[Row]:
    """Return rows that ask for a translation of a paragraph of four to nine sentences and give it."""
    rng = random.Random(seed)
    catalogues = {
        code: [pair for pair in django_catalogue(code).items() if min(map(len, pair)) >= MIN_LETTERS]
        for code in LANGUAGES
    }
    rows: list[Row] = []
    for i in range(n_rows):
        draw = rng.random()
        if rows and draw < SHARE_COPIED + SHARE_ALIKE:
            other = rng.choice(rows)
            question, answer = other["messages"]
            more = "" if draw < SHARE_COPIED else " " + answer["content"].split()[-1]
            answer = {**answer, "content": answer["content"] + more}
            rows.append({**other, "id": f"paragraph/{i}", "messages": [question, answer]})
            continue
        code = rng.choice(list(LANGUAGES))
        pairs = rng.sample(catalogues[code], rng.randint(4, 9))
        english, translated = (" ".join(part) for part in zip(*pairs, strict=True))
        if rng.random() < SHARE_PERSONAL:
            english += f" Call {personal_number(rng, 'latn')} or write to user{i}@mail.in"
            translated += f" {personal_number(rng, rng.choice(list(NUMBERING_SYSTEMS)))}"
        rows.append(
            {
                "id": f"paragraph/{i}",
                "language": code,
                "script": LANGUAGES[code],
                "messages": [
                    {"role": "user", "content": f"Translate: {english}"},
                    {"role": "assistant", "content": translated},
                ],
                "source": "django",
                "licence": "BSD-3-Clause",
            }
        )
    return rows


def personal_number(rng: random.Random, system: str) -> str:
    """Return a mobile number in the digits of a numbering system."""
    digits = str(rng.randint(6, 9)) + "".join(rng.choices("0123456789", k=9))
    native = "".join(NUMBERING_SYSTEMS[system][int(digit)] for digit in digits)
    return f"{native[:5]} {native[5:]}"


def mixed_rows(n_rows: int, seed: int = 0) -> list[Row]:
    """Return as many rows of the recipes as paragraphs (where there are as many), in a seeded order."""
    rows = recipe_rows()
    random.Random(seed).shuffle(rows)
    rows = [*rows[: n_rows // 2], *paragraph_rows(n_rows - min(len(rows), n_rows // 2), seed)]
    random.Random(seed).shuffle(rows)
    return rows


def size_of(rows: list[Row]) -> dict[str, Any]:
    """Return how many rows, characters and bytes of text there are."""
    texts = ["\n".join(text for _, text in contents(row)) for row in rows]
    n_characters = sum(map(len, texts))
    return {
        "rows": len(rows),
        "characters_a_row": n_characters / len(rows),
        "megabytes": sum(len(text.encode("utf-8")) for text in texts) / 1e6,
    }
