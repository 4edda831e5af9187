"""What counting the experts' load and reading the memory adds to a step of the quickstart.

    PYTHONPATH=. python tests/expert_load_cost.py [STEPS [THREADS]]     (without: 200 1)

Every second step counts, all on the same rows, so that both kinds do the same work. Prints the median of
each, and what a run pays that counts as often as it does. A figure is worth what the machine's idleness was.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

import torch

from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from finetune.adapters.adapter import attach
from finetune.benching.bench_model import random_plan
from finetune.config import load_run_config
from finetune.model import load_model
from finetune.train import train_rows
from finetune.training import expert_load
from finetune.training.memory_use import memory_bytes

ROOT = Path(__file__).parents[1]
N_CHOSEN = 12  # experts of a layer, of 32
FIRST_STEPS = 6  # left out: memory is still being taken


def main() -> None:
    """Measure and print."""
    given = [int(value) for value in sys.argv[1:]]
    n_steps, n_threads = [*given, *(200, 1)[len(given) :]]
    torch.set_num_threads(n_threads)
    config = load_run_config(ROOT / "configs/runs/quickstart.yaml")
    recipe = load_recipe(ROOT / config.data.recipe, ["train_rows_per_task=100", "general_languages=[]"])
    rows = list(split_rows(recipe, "train", Counter()))[: config.train.batch_size]
    model, tokenizer = load_model(replace(config.base, device="cpu"))
    attach(model, random_plan(model, N_CHOSEN, 0), config.lora, config.seed)
    usual, expert_load.EVERY_STEPS = expert_load.EVERY_STEPS, 2
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        train_rows(model, tokenizer, rows, replace(config.train, steps=n_steps), 0, (), metrics)
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()][FIRST_STEPS:]
    counted = [line["step_time_s"] for line in lines if "chosen_share" in line]
    plain = [line["step_time_s"] for line in lines if "chosen_share" not in line]
    added = median(counted) - median(plain)
    low, _, high = quantiles(plain, n=4)
    print(f"\na step {median(plain) * 1e3:.1f} ms (quartiles {low * 1e3:.1f} to {high * 1e3:.1f})")
    print(f"one that counts: {added * 1e3:+.2f} ms, {added / median(plain):+.2%}")
    print(f"as every {usual}th counts: {added / usual / median(plain):+.3%} (asked: at most 1 %)")
    started = time.perf_counter()
    for _ in range(1000):
        memory_bytes(torch.device("cpu"))
    read_s = (time.perf_counter() - started) / 1000
    print(f"reading the memory, in each step: {read_s * 1e6:.0f} us, {read_s / median(plain):.3%}")


if __name__ == "__main__":
    main()
