"""Build the dataset of a recipe: rows, checks, splits, manifest.

Reads a recipe and the facts it names; writes a folder with an Arrow `DatasetDict` (train, validation, test)
and `manifest.json` (counts, drops by reason, sources, hashes). The same recipe gives the same bytes.
Command: `local-experts data configs/recipes/tamil_locale.yaml --output runs/tamil/data`.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset, DatasetDict, Features, Value

from data_recipes.artefact import UserError, sha256_file, sha256_json, whole_folder, write_artefact
from data_recipes.languages import language
from data_recipes.recipe import RecipeConfig, load_recipe
from data_recipes.settings import settings_dict
from data_recipes.sources import SOURCES
from data_recipes.tasks import (
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
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_TEXT_COLUMNS = ("id", "language", "script", "task", "kind", "group", "value", "checker", "source", "licence")
FEATURES = Features(
    {
        "messages": datasets.List({"role": Value("string"), "content": Value("string")}),
        "phrasing": Value("int32"),
        **{name: Value("string") for name in _TEXT_COLUMNS},
    }
)


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


def manifest_body(
    recipe: RecipeConfig, rows: dict[Split, list[Row]], dropped: Counter[str]
) -> dict[str, Any]:
    """Return what the manifest says of the rows."""
    every = [row for split in SPLITS for row in rows[split]]
    used = sorted({row["source"] for row in every})
    return {
        "recipe": settings_dict(recipe),
        "content_hash": sha256_json([rows[split] for split in SPLITS]),
        "n_rows": {split: len(rows[split]) for split in SPLITS},
        "counts": {
            split: dict(sorted(Counter(f"{row['language']}/{row['task']}" for row in rows[split]).items()))
            for split in SPLITS
        },
        "dropped": dict(sorted(dropped.items())),
        "sources": {
            name: {
                "version": SOURCES[name].version(),
                "licence": SOURCES[name].licence,
                "what": SOURCES[name].what,
            }
            for name in used
        },
        "split_rule": "generalise: by the hash of the value, 80/10/10 %; remember: the same facts, asked "
        "in a phrasing that is kept for testing",
    }


def build_dataset(recipe_path: str | Path, output: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Build the dataset of a recipe into a folder, whole or not at all, and return the folder.

    Raises:
        UserError: a bad recipe, a language without phrasings, a missing source, no rows at all.
    """
    recipe = load_recipe(recipe_path, list(overrides))
    dropped: Counter[str] = Counter()
    rows: dict[Split, list[Row]] = {split: split_rows(recipe, split, dropped) for split in SPLITS}
    for split in SPLITS:
        if not rows[split]:
            reasons = "; ".join(dropped) or "no task has phrasings in these languages"
            raise UserError(f"{recipe_path}: the {split} split is empty ({reasons})")
    refuse_leaks(rows)
    body = manifest_body(recipe, rows, dropped)
    with whole_folder(output) as folder:
        save_rows(rows, body["content_hash"], folder)
        write_artefact(
            folder / "manifest.json", "dataset_manifest", {"recipe": sha256_file(recipe_path)}, body
        )
    counts = ", ".join(f"{n:,} {split}" for split, n in body["n_rows"].items())
    print(f"data      {counts} rows, {sum(dropped.values())} dropped -> {output}")
    return Path(output)


def save_rows(rows: dict[Split, list[Row]], content_hash: str, folder: Path) -> None:
    """Save the splits as Arrow; the fingerprint comes from the content, so that the bytes do too."""
    splits = {}
    for split in SPLITS:
        table = Dataset.from_list(rows[split], features=FEATURES).data
        splits[split] = Dataset(table, fingerprint=sha256_json([content_hash, split])[:16])
    progress = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        DatasetDict(splits).save_to_disk(str(folder))
    finally:
        if not progress:
            datasets.enable_progress_bars()


def read_split(folder: str | Path, split: Split) -> Dataset:
    """Read one split of a built dataset.

    Raises:
        UserError: it is missing, damaged or empty.
    """
    empty = f"the {split} split of {folder} is empty: the recipe must give it at least one row"
    try:
        found = datasets.load_from_disk(str(Path(folder) / split))
    except IndexError as error:  # datasets 5.2 saves an empty split and cannot read it back
        raise UserError(empty) from error
    except Exception as error:  # Arrow, JSON and OS errors all mean the same to the user
        raise UserError(
            f"cannot read the {split} split of {folder} ({type(error).__name__}: {error}); "
            "make it again with `local-experts data`"
        ) from error
    if not isinstance(found, Dataset) or len(found) == 0:
        raise UserError(empty)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts data RECIPE [key=value ...] --output DIR`."""
    parser = argparse.ArgumentParser(prog="local-experts data", description="build the dataset of a recipe")
    parser.add_argument("recipe", metavar="RECIPE", help="as configs/recipes/tamil_locale.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train_rows_per_task=40")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the dataset")
    arguments = parser.parse_intermixed_args(argv)
    build_dataset(arguments.recipe, arguments.output, arguments.overrides)
    return 0
