"""Does keeping the frozen layers' outputs save what these layers cost? Measured on the preset `memory`.

    python tests/prefix_cost.py [ROUNDS [THREADS]]

Two models of the preset in one process take steps in turns: a plain one, whose layers below the first adapter
are timed, and one that kept what they gave. Prints the share of a plain step that those layers take beside
the share that a step of a later epoch saves. Writes nothing.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from data_recipes.settings import load_settings
from finetune.benching.bench import BenchConfig, preset_path
from finetune.benching.memory_contestants import prepare_with_memory
from finetune.moe import decoder_layers
from finetune.training.frozen_prefix import n_layers_below_adapter

LEARNING_RATE = 1e-4


def main() -> None:
    """Measure and print."""
    n_rounds, n_threads = (int(value) for value in (*sys.argv[1:], "12", "1")[:2])
    torch.set_num_threads(n_threads)
    config = replace(load_settings(BenchConfig, preset_path("memory"), []), threads=n_threads)
    plain, plain_step, *_ = prepare_with_memory(config, "plain", config.experts, LEARNING_RATE)
    _, kept_step, *_ = prepare_with_memory(config, "prefix_cache", config.experts, LEARNING_RATE)
    depth = n_layers_below_adapter(plain)
    layers, _ = decoder_layers(plain, "")
    below = _Stopwatch(layers[0], layers[depth - 1])
    for step in (plain_step, kept_step):  # the first epoch of the second fills what is kept
        step()
    below.seconds.clear()
    pairs = [(_seconds(plain_step), _seconds(kept_step)) for _ in range(n_rounds)]
    plain_s, kept_s = zip(*pairs, strict=True)
    share = statistics.median(s / whole for s, whole in zip(below.seconds, plain_s, strict=True))
    saved = statistics.median(1 - kept / whole for kept, whole in zip(kept_s, plain_s, strict=True))
    print(
        f"{depth} of {len(layers)} layers lie below the first adapter: their forward is {share:.1%} of a "
        f"plain step of {1000 * statistics.median(plain_s):.0f} ms; "
        f"a step of a later epoch is {saved:.1%} shorter"
    )


class _Stopwatch:
    """Notes the time from the start of one layer to the end of another, at each forward."""

    def __init__(self, first: Any, last: Any) -> None:
        self.seconds: list[float] = []
        self.started = 0.0
        first.register_forward_pre_hook(self._start)
        last.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def _seconds(step: Callable[[], float]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
