"""How much longer a forward takes when it is profiled: with and without by turns, in one process.

    python tests/profile_cost.py [ROUNDS [key=value ...]]     (options of a run, as base.model=FOLDER)

Takes the Tamil rows of the quickstart's recipe on its base. Prints the ratio of the two times, and its spread
over the rounds; a table of times is worth what the machine's idleness was. Writes nothing.
"""

import itertools
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from finetune.config import load_run_config
from finetune.model import load_model
from finetune.profiling.calibration import collate, encoded_chunks, row_batches
from finetune.profiling.counting import profiled_layers
from finetune.profiling.router_recorder import LanguageTally, RouterRecorder
from finetune.profiling.routing import count_batch, plain_forward

ROOT = Path(__file__).parents[1]
N_BATCHES = 8  # of one round


def main() -> None:
    """Measure and print."""
    n_rounds, *changes = sys.argv[1:] or ["15"]
    config = load_run_config(ROOT / "configs/runs/quickstart.yaml", changes)
    options = config.profile
    recipe = load_recipe(ROOT / config.data.recipe, ["train_rows_per_task=40", "general_languages=[]"])
    rows = split_rows(recipe, "train", Counter())
    model, tokenizer = load_model(config.base)
    layers = profiled_layers(model)
    chunks = encoded_chunks(tokenizer, "ta", rows, options, config.seed)
    encoded = itertools.chain.from_iterable(chunk.rows for chunk in chunks)
    batches = list(row_batches(list(encoded), options.batch_size))
    batches = batches[:: max(1, len(batches) // N_BATCHES)]  # short and long ones
    tally = LanguageTally(len(layers), layers[0].n_experts, options.replicates, options.kinds)

    def plain() -> None:
        for batch in batches:
            plain_forward(model, collate(batch, config.seed, 0))

    def profiled() -> None:
        with RouterRecorder(layers, tally.add) as recorder:
            for batch in batches:
                count_batch(model, recorder, tally, collate(batch, config.seed, options.replicates))

    # On a busy machine the time on the clock is noise; the processor's time (one thread) is less so.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {"plain": [], "profiled": []}
    with torch.inference_mode():
        plain()  # warm up
        profiled()
        for number in range(int(n_rounds)):
            for run in (plain, profiled) if number % 2 else (profiled, plain):
                started = clock()
                run()
                seconds[run.__name__].append(clock() - started)
    ratios = sorted(b / a for a, b in zip(seconds["plain"], seconds["profiled"], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    n_tokens = sum(len(row.ids) for batch in batches for row in batch)
    print(f"{len(batches)} batches of {options.batch_size} rows, {n_tokens:,} tokens, {len(layers)} layers")
    print(
        f"{torch.get_num_threads()} threads, {options.replicates} replicates, {n_rounds} rounds, "
        f"{clock.__name__}"
    )
    for name, found in seconds.items():
        print(f"{name:<9} median {statistics.median(found):.4f} s, fastest {min(found):.4f} s")
    spread = f"quartiles {low:.3f} to {high:.3f}, all {ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"ratio     median {middle:.3f}, {spread}")
    print(f"ratio of the fastest {min(seconds['profiled']) / min(seconds['plain']):.3f}")


if __name__ == "__main__":
    main()
