"""Print the rows per second of the safety steps on one core, over the shipped recipes' rows.

Reads the recipes' facts; writes nothing. Command: `OMP_NUM_THREADS=1 python -m tests.safety_speed`, on a
quiet machine. CPU time is counted, and the bytes a row leaves behind in the table of duplicates.
"""

import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from data_recipes.locale_rows import split_rows
from data_recipes.pii.step import PiiOptions, remove_pii
from data_recipes.recipe import load_recipe
from data_recipes.screening.contamination import index_test_sets, keep_out
from data_recipes.screening.duplicates import DuplicateOptions, drop_duplicates, signatures
from data_recipes.screening.licences import check_licences
from data_recipes.steps import Row
from data_recipes.tasks import SPLITS
from tests.pii_rates import RECIPES


def recipe_rows() -> list[Row]:
    """Return the training rows of all shipped recipes, each with an id of its own, and the test questions."""
    found: dict[str, Row] = {}
    for recipe in RECIPES:
        for split in SPLITS:
            for row in split_rows(load_recipe(recipe, []), split, Counter()):
                found.setdefault(row["id"], row)
    return list(found.values())


def speed(name: str, rows: list[Row], step: Callable[[list[Row]], Iterable[Any]]) -> None:
    """Print how many rows a step takes in a second of CPU time; the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        deque(step(rows), maxlen=0)
        best = min(best, time.process_time() - start)
    print(f"{name:28} {len(rows) / best:>10,.0f} rows/s")


def main() -> None:
    """Print one line a step."""
    rows = recipe_rows()
    questions = [row["messages"][0]["content"] for row in rows[::20]]
    index, others = index_test_sets({"every twentieth": questions}), [r for i, r in enumerate(rows) if i % 20]
    print(f"{len(rows):,} rows")
    speed("licences", rows, check_licences)
    speed("personal data, tags", rows, remove_pii)
    speed(
        "personal data, surrogates", rows, lambda r: remove_pii(r, PiiOptions(action="surrogate"), bytes(32))
    )
    speed("duplicates with twins", rows, lambda r: drop_duplicates(lambda: iter(r)))
    keep = DuplicateOptions(twins="keep")
    speed("duplicates without twins", rows, lambda r: drop_duplicates(lambda: iter(r), keep))
    speed(f"contamination, {len(questions):,} texts", others, lambda r: keep_out(r, index))
    tracemalloc.start()
    table = signatures(rows, DuplicateOptions())
    print(f"duplicates hold {tracemalloc.get_traced_memory()[0] / len(table):.0f} bytes a row")


if __name__ == "__main__":
    main()
