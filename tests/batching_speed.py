"""Padding and tokens a second of rows in lines of their own, grouped by length, and packed, on tiny-glm.

The rows are chats whose answers are of lengths as in an instruction set (log-normal). The ways take turns, on
the same rows; run it on a quiet machine: `PYTHONPATH=. python tests/batching_speed.py [--rounds 5]`.
"""

import argparse
from statistics import median
from typing import Any

import numpy as np

from finetune.adapters.adapter import attach
from finetune.config import BaseConfig, LoraConfig
from finetune.model import load_model
from finetune.train import train_rows
from finetune.training_options import TrainConfig

WAYS: dict[str, dict[str, Any]] = {
    "lines": {},
    "grouped": {"group_by_length": True},
    "packed": {"pack_length_tokens": 512},
    "packed, 2 passes": {"pack_length_tokens": 512, "accumulate": 2},
}
N_ROWS, N_STEPS, BATCH_SIZE = 512, 8, 16


def chats() -> list[dict[str, Any]]:
    """Rows with answers of 4 to 240 words, half of them below 30."""
    n_words = np.random.default_rng(0).lognormal(np.log(30), 1.0, N_ROWS).clip(4, 240).astype(int)
    rows = []
    for number, n in enumerate(n_words):
        question = {"role": "user", "content": f"Question {number}?"}
        answer = {"role": "assistant", "content": "word " * int(n)}
        rows.append({"id": str(number), "messages": [question, answer]})
    return rows


def main() -> None:
    """Print a line for each way: medians over the rounds, and against rows in lines of their own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows, speeds, padding = chats(), {way: [] for way in WAYS}, {}
    for _ in range(rounds):
        for way, changes in WAYS.items():
            model, tokenizer = load_model(BaseConfig(device="cpu"))
            attach(model, {"experts": {str(layer): [0, 1, 2, 3] for layer in range(1, 6)}}, LoraConfig(), 0)
            config = TrainConfig(
                steps=N_STEPS, learning_rate=1e-3, batch_size=BATCH_SIZE, max_length_tokens=512, **changes
            )
            result = train_rows(model, tokenizer, rows, config)
            speeds[way].append(result.tokens_per_s)
            padding[way] = result.padding_share
    for way, found in speeds.items():
        ratios = [one / line for one, line in zip(found, speeds["lines"], strict=True)]
        print(
            f"{way:<17} padding {padding[way]:6.1%}  {median(found):8,.0f} tokens/s  "
            f"{median(ratios):.2f} x lines ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
