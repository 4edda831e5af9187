"""Raw text for the base model: running text, names and facts in English and the 22 scheduled languages.

Reads Babel, `indic-numtowords`, Django's catalogues and the Kolibri wheel; writes nothing. It is software and
name text with hardly any prose: enough to learn the scripts, the words and the ways of writing, not to learn
to chat. Instructions are made apart, from `tasks`, and only in English, Hindi and Bengali.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import regex

from data_recipes import sources
from data_recipes.languages import LANGUAGES
from data_recipes.tasks import TASKS, known_values, phrasings, split_of
from data_recipes.text import normalise

INSTRUCTED = ("en", "hi", "bn")  # the only languages in which the base ever sees an instruction
KOLIBRI_LOCALES = {"en": "en", "mr": "mr", "pa": "pa", "te": "te"} | {
    "bn": "bn_BD", "gu": "gu_IN", "hi": "hi_IN", "ur": "ur_PK"
}  # fmt: skip
HELD_OUT_EVERY = 20  # one document of running text in so many is kept out, to measure routing on


@dataclass(frozen=True)
class Document:
    """A piece of text in one language. `running` tells sentences from lists of names and facts."""

    language: str
    text: str
    running: bool
    held_out: bool = False


def chunks(parts: Iterable[str], separator: str, n_characters: int) -> Iterator[str]:
    """Yield the parts joined into texts of at least `n_characters` (the last may be shorter)."""
    held: list[str] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= n_characters:
            yield separator.join(held)
            held = []
    if held:
        yield separator.join(held)


def running_text(code: str, kolibri_wheel: Path | None) -> list[Document]:
    """Return the interface sentences of Kolibri and Django in a language, about 500 characters a document."""
    messages: list[str] = []
    if kolibri_wheel is not None and code in KOLIBRI_LOCALES:
        messages += sources.kolibri_catalogue(kolibri_wheel, KOLIBRI_LOCALES[code]).values()
    catalogue = sources.django_catalogue("hi" if code == "en" else code)
    messages += catalogue.keys() if code == "en" else catalogue.values()
    unique = dict.fromkeys(normalise(message) for message in messages)
    texts = chunks(unique, "\n", 500)
    return [Document(code, text, True, i % HELD_OUT_EVERY == 0) for i, text in enumerate(texts)]


def facts(task_name: str, code: str, n: int, rng: random.Random) -> Iterator[str]:
    """Yield answers of a task in a language, without their questions, from training values only."""
    task = TASKS[task_name]
    known = known_values(task_name, code)
    for _ in range(n):
        value = task.draw(rng) if task.draw else rng.choice(known) if known else None
        if value is None or (task.kind == "generalise" and split_of(task_name, value) != "train"):
            continue
        answer = task.answer(value, code)
        if answer is not None:
            yield answer


def fact_text(code: str, n_each: int, rng: random.Random) -> list[Document]:
    """Return lists of dates, amounts, number words, units and names as a language writes them."""
    documents = []
    for name in TASKS:
        if name == "ui":
            continue
        lines = list(facts(name, code, n_each, rng))
        documents += [Document(code, text, False) for text in chunks(lines, "\n", 300)]
    return documents


def raw_documents(kolibri_wheel: Path | None, n_facts_each: int, seed: int) -> list[Document]:
    """Return the raw text of all languages, held-out documents among it."""
    documents = []
    for code in LANGUAGES:
        rng = random.Random(f"{seed}:{code}")
        documents += running_text(code, kolibri_wheel)
        documents += fact_text(code, n_facts_each, rng)
    return documents


def instruction(code: str, kind: str, rng: random.Random) -> tuple[str, str] | None:
    """Return a question and its answer, training values and phrasings only; None means draw again."""
    sentences = phrasings(code)
    names = sorted(name for name in sentences if TASKS[name].kind == kind)
    # A list of names is drawn as often as it is long: every name is asked about equally often.
    weights = [max(1, len(known_values(name, code))) for name in names]
    task = TASKS[rng.choices(names, weights)[0]]
    value = task.draw(rng) if task.draw else rng.choice(known_values(task.name, code))
    if task.kind == "generalise" and split_of(task.name, value) != "train":
        return None
    answer = task.answer(value, code)
    if answer is None:
        return None
    asked = varied(rng.choice(sentences[task.name][:-1]), code, rng)
    return asked.replace("{x}", task.question(value, code)), answer


@cache
def filler_words(code: str) -> tuple[str, ...]:
    """Return the words of Django's interface strings in a language, each once, sorted."""
    catalogue = sources.django_catalogue("hi" if code == "en" else code)
    texts = catalogue.keys() if code == "en" else catalogue.values()
    words = {word for text in texts for word in normalise(text).split()}
    return tuple(sorted(word for word in words if regex.fullmatch(r"[\p{L}\p{M}]+", word)))


def varied(phrasing: str, code: str, rng: random.Random) -> str:
    """Return a phrasing with some words left out and words that mean nothing here put in; {x} stays.

    Four phrasings a task would be learnt by heart, and a fifth would then be answered with noise.
    """
    words = [word for word in phrasing.split(" ") if "{x}" in word or rng.random() >= 0.1]
    for _ in range(rng.choice((0, 0, 1, 2))):
        words.insert(rng.randrange(len(words) + 1), rng.choice(filler_words(code)))
    return " ".join(words)


def instructions(n: int, kind: str, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield `n` instructions (language, question, answer) of a kind, the three languages in turn."""
    rng = random.Random(f"{seed}:instructions:{kind}")
    n_made = 0
    while n_made < n:
        code = INSTRUCTED[n_made % len(INSTRUCTED)]
        pair = instruction(code, kind, rng)
        if pair is not None:
            n_made += 1
            yield code, *pair
