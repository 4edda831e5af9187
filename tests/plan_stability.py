"""How many tokens a plan needs: the plan of few tokens beside the plan of ten times as many, by Jaccard.

    python tests/plan_stability.py [key=value ...]     (options of a run, as select.share=0.2)

Takes the Tamil recipe of the quickstart, enlarged until it gives ten times the most tokens that are asked
about, on the shipped base. Prints, for each number of tokens, the mean Jaccard over the layers of its plan
with the plan of ten times as many, and the bootstrap's own estimate. Writes nothing.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from finetune.config import ProfileConfig, load_run_config
from finetune.model import load_model
from finetune.profiling.calibration import encode_row
from finetune.profiling.replicates import replicates_agree
from finetune.profiling.routing import profile_rows
from finetune.selecting.choices import token_share
from finetune.selecting.routing_measures import jaccard

ROOT = Path(__file__).parents[1]
N_TOKENS = (2**12, 2**13, 2**14, 2**15)
N_MANY = 10 * N_TOKENS[-1]
ROWS_PER_TASK = 1200
SHARES = (0.2, 0.5, 0.6)


def main() -> None:
    """Measure and print."""
    config = load_run_config(ROOT / "configs/runs/quickstart.yaml", sys.argv[1:])
    changes = [f"train_rows_per_task={ROWS_PER_TASK}", "general_languages=[]"]
    rows = split_rows(load_recipe(ROOT / config.data.recipe, changes), "train", Counter())
    model, tokenizer = load_model(config.base)
    n_there = sum(len(encode_row(tokenizer, row).ids) for row in rows)
    by_task = ", ".join(f"{task} {n}" for task, n in sorted(Counter(row["task"] for row in rows).items()))
    print(f"{len(rows):,} rows, {n_there:,} tokens: {by_task}")
    counts: dict[int, np.ndarray] = {}
    replicates: dict[int, np.ndarray] = {}
    wanted = sorted({*N_TOKENS, *(10 * n for n in N_TOKENS)})
    for n_tokens in wanted:
        found = profile_rows(model, tokenizer, {"ta": rows}, ProfileConfig(max_tokens=n_tokens), config.seed)
        counts[n_tokens], replicates[n_tokens] = found.counts(["ta"]), found.replicate_counts["ta"]
        print(f"{n_tokens:>8,} asked, {found.head['n_tokens']['ta']:,} read", flush=True)
    for share in SHARES:
        print(
            f"share {share}: tokens, Jaccard with ten times as many (mean, least layer), bootstrap's estimate"
        )
        for n_tokens in N_TOKENS:
            few, many = (token_share(counts[n], share) for n in (n_tokens, 10 * n_tokens))
            agree_L = jaccard(few, many)
            estimate = replicates_agree(counts[n_tokens], replicates[n_tokens], share)
            print(f"{n_tokens:>8,}  {agree_L.mean():.3f}  {agree_L.min():.3f}  {estimate:.3f}")


if __name__ == "__main__":
    main()
