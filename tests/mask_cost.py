"""Rows a second of the chat template step on one core, beside transformers' own mask alone.

Run it on a quiet machine: `OMP_NUM_THREADS=1 PYTHONPATH=. python tests/mask_cost.py`. Both read the rows of
the quickstart; ours also finds where every answer starts and ends by rendering again, and looks for control
tokens in the texts.
"""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from transformers import AutoTokenizer

from data_recipes.chats.chat_template import read_template
from data_recipes.chats.mask_audit import audited_mask
from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from finetune.config import SHIPPED_MODELS

N_ROUNDS = 5


def rows_per_s(rows: list[Any], step: Callable[[Any], Any]) -> float:
    """The median of some rounds over all rows."""
    rounds = []
    for _ in range(N_ROUNDS):
        start = time.perf_counter()
        for row in rows:
            step(row)
        rounds.append(len(rows) / (time.perf_counter() - start))
    return median(rounds)


def main() -> None:
    """Print both rates for a template with marks, and ours for the same one without."""
    recipe = load_recipe(Path(__file__).parents[1] / "configs/recipes/tamil_locale.yaml")
    rows = split_rows(recipe, "train", Counter())
    tokenizer: Any = AutoTokenizer.from_pretrained(SHIPPED_MODELS["tiny-glm"])
    own = rows_per_s(
        rows,
        lambda row: tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        ),
    )
    marked_template = read_template(tokenizer)
    marked = rows_per_s(rows, lambda row: audited_mask(marked_template, row))
    for mark in ("{% generation %}", "{% endgeneration %}"):
        tokenizer.chat_template = tokenizer.chat_template.replace(mark, "")
    bare_template = read_template(tokenizer)
    assert marked_template.has_marks and not bare_template.has_marks
    bare = rows_per_s(rows, lambda row: audited_mask(bare_template, row))
    print(
        f"{len(rows)} rows; rows/s: transformers' mask {own:,.0f}, ours {marked:,.0f}, no marks {bare:,.0f}"
    )


if __name__ == "__main__":
    main()
