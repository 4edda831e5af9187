"""Rows of the locale tasks: questions about facts that code can check, each in the split it belongs to.

Reads the facts that a recipe names (Babel, Django's catalogues, our phrasings); writes nothing. The same
recipe gives the same rows in the same order.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from data_recipes.artefact import UserError, sha256_json
from data_recipes.languages import language
from data_recipes.recipe import RecipeConfig
from data_recipes.screening.licences import may_commit
from data_recipes.sources import SOURCES
from data_recipes.tasks import (
    SPLITS,
    TASKS,
    TASKS_WITHOUT_OWN_WORDS,
    Split,
    Task,
    canonical,
    check,
    known_values,
    phrasings,
    split_of,
)
from data_recipes.tasks import Value as Fact
from data_recipes.text import script_share

Row = dict[str, Any]
Group = Literal["target", "general"]


def distinct_values(task: Task, split: Split, n: int, rng: random.Random) -> list[Fact]:
    """Draw `n` different values of a *generalise* task that belong to a split; fewer when there are fewer."""
    assert task.draw is not None
    found: dict[str, Fact] = {}
    for _ in range(200 * n):
        if len(found) == n:
            break
        value = task.draw(rng)
        if split_of(task.name, value) == split:
            found.setdefault(canonical(value), value)
    return list(found.values())


def questions(
    task: Task, code: str, split: Split, n: int, rng: random.Random, n_trained: int | None = None
) -> Iterator[tuple[Fact, int]]:
    """Yield about `n` pairs of a value and the number of its phrasing.

    The last phrasing stands in the test split alone. *Generalise*: values of the split, and half of the test
    rows in a phrasing that was trained. *Remember*: every fact in each training phrasing, then the same facts
    in the kept phrasing; validation has none. With `n_trained` training rows the test asks about no fact that
    those do not show; None leaves it all facts (a language that the base knows).
    """
    kept = len(phrasings(code)[task.name]) - 1
    if task.kind == "generalise":
        for i, value in enumerate(distinct_values(task, split, n, rng)):
            yield value, kept if split == "test" and i % 2 else i % kept
    elif split != "validation":
        # One order of the facts for both splits: what is asked in the test is what was shown in training.
        facts = random.Random(f"{task.name}:{code}").sample(
            known := list(known_values(task.name, code)), len(known)
        )
        n_shown = len(facts) if n_trained is None else math.ceil(n_trained / kept)
        for value in facts[: math.ceil(n / kept) if split == "train" else min(n, n_shown)]:
            yield from [(value, kept)] if split == "test" else [(value, i) for i in range(kept)]


def make_row(task: Task, code: str, group: Group, value: Fact, phrasing: int) -> Row | str:
    """Return one row, or the reason why there is none."""
    answer = task.answer(value, code)
    if answer is None:
        return "the source has no answer in this language"
    script = language(code).script
    if task.name not in TASKS_WITHOUT_OWN_WORDS and script_share(answer, script) < 1.0:
        return "the answer is not wholly in the script of the language"
    if not check(task.name, code, canonical(value), answer):
        return "the answer fails its own checker"
    question = phrasings(code)[task.name][phrasing].replace("{x}", task.question(value, code))
    return {
        "id": f"{code}/{task.name}/{sha256_json([canonical(value), phrasing])[:12]}",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "language": code,
        "script": script,
        "task": task.name,
        "kind": task.kind,
        "group": group,
        "phrasing": phrasing,
        "value": canonical(value),
        "checker": task.name,
        "source": task.source,
        "licence": SOURCES[task.source].licence,
    }


def rows_wanted(recipe: RecipeConfig, group: Group, split: Split) -> int:
    """Return how many rows a language and task of a group get in a split."""
    if split == "validation":
        return recipe.validation_rows_per_task
    if group == "target":
        return recipe.train_rows_per_task if split == "train" else recipe.test_rows_per_task
    if split == "test":
        return recipe.general_test_rows_per_task
    n_target = recipe.train_rows_per_task * len(recipe.languages)
    n_general = n_target * recipe.general_share / (1 - recipe.general_share)
    return math.ceil(n_general / max(1, len(recipe.general_languages)))


def split_rows(recipe: RecipeConfig, split: Split, dropped: Counter[str]) -> list[Row]:
    """Return the rows of a split in a seeded order; drops are counted by language, task and reason."""
    rows: dict[str, Row] = {}
    members: list[tuple[str, Group]] = [
        *((code, "target") for code in recipe.languages),
        *((code, "general") for code in recipe.general_languages),
    ]
    for code, group in members:
        n_trained = recipe.train_rows_per_task if group == "target" else None
        for name in (name for name in recipe.tasks if name in phrasings(code)):
            rng = random.Random(f"{recipe.seed}:{split}:{code}:{name}")
            for value, phrasing in questions(
                TASKS[name], code, split, rows_wanted(recipe, group, split), rng, n_trained
            ):
                row = make_row(TASKS[name], code, group, value, phrasing)
                if isinstance(row, str):
                    dropped[f"{code}/{name}: {row}"] += 1
                else:
                    rows[row["id"]] = row
    ordered = list(rows.values())
    random.Random(f"{recipe.seed}:{split}").shuffle(ordered)
    return ordered


def refuse_leaks(rows: dict[Split, list[Row]]) -> None:
    """Raise when a question of the test split, or a value to generalise to, is in another split."""
    for other in ("train", "validation"):
        asked = {row["messages"][0]["content"] for row in rows[other]}
        values = {(row["task"], row["value"]) for row in rows[other] if row["kind"] == "generalise"}
        for row in rows["test"]:
            if row["messages"][0]["content"] in asked or (row["task"], row["value"]) in values:
                raise UserError(f"test row {row['id']} is in the {other} split too: {row['messages'][0]}")


def locale_rows(recipe: RecipeConfig, name: str, dropped: Counter[str]) -> dict[Split, list[Row]]:
    """Return the rows of all splits, each with its split and where it comes from; none without tasks.

    Raises:
        UserError: a language without phrasings, a missing package, a leak, or an empty split of a recipe
            `name` that has no other rows.
    """
    if not (recipe.tasks and recipe.languages):
        return {split: [] for split in SPLITS}
    rows: dict[Split, list[Row]] = {split: split_rows(recipe, split, dropped) for split in SPLITS}
    for split in SPLITS:
        if not rows[split] and not recipe.sources:
            reasons = "; ".join(dropped) or "no task has phrasings in these languages"
            raise UserError(f"{name}: the {split} split is empty ({reasons})")
    refuse_leaks(rows)
    return {split: [row | _provenance(row) | {"split": split} for row in rows[split]] for split in SPLITS}


def _provenance(row: Row) -> Row:
    said = SOURCES[row["source"]]
    return {
        "revision": said.version(),
        "row_id": row["id"],
        "licence_from": "our table of sources",
        "attribution": f"{said.what} ({said.name})",
        "may_commit": may_commit(said.licence),
        "transforms": [],
    }
