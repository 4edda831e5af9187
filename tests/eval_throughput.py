"""What batches and the comparison cost: ratios of times in one run, on the shipped tiny-glm with an adapter.

Writes nothing; prints the two figures that evaluation must keep. Generation in batches is at least 4 times as
fast as one by one; base and tuned with all their metrics take at most 1.1 times the two generations alone.
The second is measured against `generate_answers`, which decides, and against plain calls of transformers'
`generate` on the same batches, which compute each batch until its longest answer ends.

    OMP_NUM_THREADS=2 python tests/eval_throughput.py [--rows 582] [--repeats 3]
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from eval.evaluate import evaluate_rows
from eval.generate import batches_by_length, generate_answers, greedy, prompt_tokens
from finetune.adapters.adapter import adapter_disabled, adapter_parameters, attach
from finetune.config import BaseConfig, LoraConfig
from finetune.eval_options import EvalConfig
from finetune.model import load_model, model_fingerprint
from finetune.moe import moe_layers

RECIPE = Path(__file__).parents[1] / "configs/recipes/tamil_locale.yaml"
CONFIG = EvalConfig(batch_size=64, max_new_tokens=40)  # as configs/runs/quickstart.yaml
LEAST_SPEEDUP, MOST_RATIO = 4.0, 1.1


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_adapter(model: Any) -> Any:
    """On half of the experts and on attention; values so small that answers keep their lengths."""
    experts = {str(layer.index): list(range(0, layer.n_experts, 2)) for layer in moe_layers(model)}
    plan = {"experts": experts, "model_fingerprint": model_fingerprint(model), "seed": 0}
    attach(model, plan, LoraConfig(rank=16, alpha=32.0, attention=True), seed=0)
    generator = torch.Generator().manual_seed(0)
    for value in adapter_parameters(model).values():
        value.data.copy_(torch.randn(value.shape, generator=generator) * 0.003)
    return model


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000, help="the first so many; all by default")
    parser.add_argument("--one-by-one", type=int, default=32, help="rows that are answered one by one")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    loaded, tokenizer = load_model(BaseConfig(device="cpu"))
    model = with_adapter(loaded)
    rows = split_rows(load_recipe(RECIPE), "test", Counter())[: arguments.rows]
    prompts = [row["messages"][:-1] for row in rows]

    def generate(some, batch_size):
        return generate_answers(model, tokenizer, some, batch_size, CONFIG.max_new_tokens)

    def both_generations():
        with adapter_disabled(model):
            generate(prompts, CONFIG.batch_size)
        generate(prompts, CONFIG.batch_size)

    def both_plain():
        settings = greedy(model, tokenizer)
        settings.max_new_tokens = CONFIG.max_new_tokens
        tokens = [prompt_tokens(tokenizer, messages) for messages in prompts]
        for switched in (adapter_disabled(model), nullcontext()):
            with switched, torch.inference_mode():
                for indices in batches_by_length(tokens, CONFIG.batch_size, None):
                    padded = tokenizer.pad({"input_ids": [tokens[i] for i in indices]}, padding_side="left")
                    named = {name: torch.tensor(padded[name]) for name in ("input_ids", "attention_mask")}
                    model.generate(**named, generation_config=settings)

    every = len(prompts) // min(arguments.one_by_one, len(prompts))
    some = prompts[::every]  # of all lengths
    generate(some[:2], 2)  # what is made once is made before
    speedups, ratios, plain_ratios = [], [], []
    for _ in range(arguments.repeats):
        alone = seconds(lambda: generate(some, 1)) / len(some)
        in_batches = seconds(lambda: generate(prompts, CONFIG.batch_size)) / len(prompts)
        two = seconds(both_generations)
        plain = seconds(both_plain)
        together = seconds(lambda: evaluate_rows(model, tokenizer, rows, CONFIG, seed=0))
        speedups.append(alone / in_batches)
        ratios.append(together / two)
        plain_ratios.append(together / plain)
        print(f"a row alone {alone:.3f} s, in batches {in_batches:.3f} s; ", end="")
        print(f"two generations {two:.1f} s, plain {plain:.1f} s, base and tuned together {together:.1f} s")
    speedup, ratio = statistics.median(speedups), statistics.median(ratios)
    print(f"batches are {speedup:.1f} times as fast (at least {LEAST_SPEEDUP}), on {len(rows)} rows")
    print(f"base and tuned together take {ratio:.3f} of the two generations alone (at most {MOST_RATIO})")
    print(f"and {statistics.median(plain_ratios):.3f} of two plain generations")
    return 0 if speedup >= LEAST_SPEEDUP and ratio <= MOST_RATIO else 1


if __name__ == "__main__":
    raise SystemExit(main())
