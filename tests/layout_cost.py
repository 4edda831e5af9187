"""What a second process brings, and what keeping adapters the same costs: the quickstart's training steps.

    python tests/layout_cost.py [STEPS [LAYOUT ...]]     (as 40 data_parallel fsdp; without: 40 data_parallel)

Starts itself in one process of one thread, then in two of one thread each, in turns, and prints the median of
tokens/s over the rounds. Two share out the batch of one ("same batch"), or have its rows each ("same rows").
Beside them two that never talk: more than these the machine does not give. A step of two is told apart:
waiting for the other one, and synchronising once both are there. A rate is worth what the machine's idleness
was. Reads the quickstart's recipe; writes nothing that stays.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_recipes.locale_rows import split_rows
from data_recipes.recipe import load_recipe
from finetune.adapters.adapter import attach
from finetune.benching.bench_model import random_plan
from finetune.config import load_run_config
from finetune.layouts.layout import Layout
from finetune.layouts.placement import choose_layout, load_base
from finetune.processes import start_accelerator
from finetune.train import train_rows
from finetune.training_options import LayoutConfig

Measured = dict[str, float]
ROOT = Path(__file__).parents[1]
N_CHOSEN = 8  # experts of a layer
FIRST_STEPS = 5  # left out: memory is still being taken
N_ROUNDS = 3


@dataclass(frozen=True)
class TimedLayout(Layout):
    """A layout that notes how long each step waited and synchronised."""

    waited_s: list[float] = field(default_factory=list)
    synchronised_s: list[float] = field(default_factory=list)

    def sum_gradients(self, own: Mapping[str, nn.Parameter]) -> None:
        """Wait for the others, then add the gradients up, each timed."""
        started = time.perf_counter()
        self.accelerator.wait_for_everyone()
        met = time.perf_counter()
        super().sum_gradients(own)
        self.waited_s.append(met - started)
        self.synchronised_s.append(time.perf_counter() - met)

    def sum_over_rows(self, value: torch.Tensor) -> float:
        """Add the loss up; its time counts as synchronising."""
        started = time.perf_counter()
        total = super().sum_over_rows(value)
        self.synchronised_s[-1] += time.perf_counter() - started
        return total


def measure(n_steps: int, kind: str, n_processes: int, n_batches: int, folder: Path) -> None:
    """One process's part: train, and let the first one write what was measured to result.json."""
    torch.set_num_threads(1)
    config = load_run_config(ROOT / "configs/runs/quickstart.yaml")
    layout_config = LayoutConfig(kind=kind if n_processes > 1 else "auto")  # type: ignore[arg-type]
    batch_size = n_batches * config.train.batch_size
    options = replace(
        config.train,
        steps=n_steps,
        warmup_steps=0,
        n_processes=n_processes,
        layout=layout_config,
        batch_size=batch_size,
    )
    recipe = load_recipe(ROOT / config.data.recipe, ["train_rows_per_task=100", "general_languages=[]"])
    rows = split_rows(recipe, "train", Counter())
    base = replace(config.base, device="cpu")
    accelerator = start_accelerator(n_processes, "cpu")
    layout, sharing = choose_layout(base, options, accelerator)
    model, tokenizer = load_base(base, layout, sharing, 600)
    attach(model, random_plan(model, N_CHOSEN, 0), config.lora, config.seed)
    timed = TimedLayout(accelerator, layout.data_index, layout.n_data, layout.kind, layout.ep_size)
    metrics = folder / "metrics.jsonl"
    train_rows(model, tokenizer, rows, options, 0, (), metrics, layout=timed)
    if not accelerator.is_main_process:
        return
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()][FIRST_STEPS:]
    step_s = [line["step_time_s"] for line in lines]
    found = {
        "tokens_per_s": sum(line["tokens_per_s"] * line["step_time_s"] for line in lines) / sum(step_s),
        "step_s": statistics.median(step_s),
        "waited_s": statistics.median(timed.waited_s[FIRST_STEPS:]),
        "synchronised_s": statistics.median(timed.synchronised_s[FIRST_STEPS:]),
    }
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")


def launched(n_steps: int, kind: str, n_processes: int, n_batches: int = 1, n_runs: int = 1) -> Measured:
    """Measure in new processes; of several runs at the same time the rates add up."""
    with tempfile.TemporaryDirectory() as folder:
        started = [start(n_steps, kind, n_processes, n_batches, Path(folder) / str(i)) for i in range(n_runs)]
        assert [process.wait() for process in started] == [0] * n_runs
        files = sorted(Path(folder).glob("*/result.json"))
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return found[0] | {"tokens_per_s": sum(one["tokens_per_s"] for one in found)}


def start(n_steps: int, kind: str, n_processes: int, n_batches: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start this file as `n_processes` that work together."""
    folder.mkdir()
    line = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    arguments = [str(n_steps), kind, str(n_processes), str(n_batches), str(folder)]
    return subprocess.Popen(
        [sys.executable, *line, __file__, "--measure", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def medians(rounds: list[Measured]) -> Measured:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--measure"]:
        n_steps, kind, n_processes, n_batches, folder = sys.argv[2:]
        return measure(int(n_steps), kind, int(n_processes), int(n_batches), Path(folder))
    first, *kinds = sys.argv[1:] or ["40"]
    n_steps = int(first)
    contestants: dict[str, dict[str, Any]] = {"one": {"kind": "auto", "n_processes": 1}}
    contestants["two that never talk"] = contestants["one"] | {"n_runs": 2}
    for kind in kinds or ["data_parallel"]:
        contestants[f"two, {kind}, same batch"] = {"kind": kind, "n_processes": 2}
        contestants[f"two, {kind}, same rows"] = {"kind": kind, "n_processes": 2, "n_batches": 2}
    rounds = [{name: launched(n_steps, **how) for name, how in contestants.items()} for _ in range(N_ROUNDS)]
    for name in contestants:
        found = medians([one[name] for one in rounds])
        ratios = [one[name]["tokens_per_s"] / one["one"]["tokens_per_s"] for one in rounds]
        waited, synchronised = (found[key] / found["step_s"] for key in ("waited_s", "synchronised_s"))
        print(
            f"{name}: {found['tokens_per_s']:,.0f} tokens/s ({statistics.median(ratios):.2f} x, "
            f"{min(ratios):.2f} to {max(ratios):.2f}), step {1000 * found['step_s']:.0f} ms, "
            f"synchronising {synchronised:.1%}, waiting for the other {waited:.1%}"
        )


if __name__ == "__main__":
    main()
