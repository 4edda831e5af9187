"""What expert LoRA costs: time and peak memory of a step, beside attention LoRA alone and beside PEFT.

Reads configs/bench/*.yaml; writes the numbers (`--json FILE`) and a plot beside them. Every contestant lives
in a process of its own (bench_worker.py) and one computes while the others wait, so a machine that grows
slower does so for all. Imports no torch.

    local-experts bench --preset cpu --json bench.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data_recipes.artefact import UserError, write_artefact
from data_recipes.settings import load_settings, out_of_range, settings_dict
from finetune.benching.bench_report import PAIR, summarise, table, write_plot

Contestants = Literal[
    "floor", "selected", "all", "peft_all", "trl_peft_all",
    "plain", "checkpointing", "chunked_loss", "bfloat16", "prefix_cache", "together",
]  # fmt: skip
PRESETS = Path(__file__).parents[2] / "configs" / "bench"
TRL_MISSING = "TRL is not installed: pip install 'local-experts[trl]'"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The model that is built, who is compared on it, and how often."""

    hidden: int  # width of the model
    expert_width: int  # of an expert's FFN
    experts: int  # of a layer
    top_k: int  # experts of a token
    dense_layers: int = 1
    moe_layers: int = 2
    heads: int = 8
    vocabulary: int = 1024
    tokens: int = 1024  # of one step
    length_tokens: int = 256  # of one sequence
    rank: int = 8
    chosen: int = 16  # experts of a layer that get LoRA
    chosen_share: float | None = None  # of routed rows that go to chosen experts; None is chosen / experts
    # The floor is attention LoRA alone; the others have it too, and LoRA on the chosen or on all experts.
    # Those from plain on have LoRA on the chosen experts alone, and an option of train.memory each.
    contestants: tuple[Contestants, ...] = (
        "floor",
        "selected",
        "all",
        "peft_all",
        "trl_peft_all",
    )
    adapted_layers: int | None = None  # from plain on: MoE layers with LoRA, the upper ones; None is all
    loss_chunk_tokens: int = 128  # of chunked_loss and together
    scaling: tuple[int, ...] = ()  # other numbers of experts, to see whether the price of LoRA depends on it
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights
    experts_implementation: Literal["grouped_mm", "eager", "batched_mm"] = "grouped_mm"
    device: str = "auto"
    threads: int = 2
    rounds: int = 8  # in each of which every contestant has its turn
    steps_per_round: int = 3
    warmup_steps: int = 2  # before the first round, not measured
    matmul_size: int = 2048  # of the square matrices whose product shows the machine's rate
    seed: int = 0

    @property
    def rows_share(self) -> float:
        """The share of routed rows on chosen experts, the same for every number of experts."""
        return self.chosen / self.experts if self.chosen_share is None else self.chosen_share

    def problems(self) -> list[str]:
        """Values no bench can use, as "key: reason"."""
        counts = ("hidden", "expert_width", "experts", "top_k", "moe_layers", "heads", "vocabulary", "tokens")
        counts += ("length_tokens", "rank", "chosen", "threads", "rounds", "steps_per_round", "warmup_steps")
        counts += ("matmul_size", "adapted_layers", "loss_chunk_tokens")
        wrong = out_of_range({name: getattr(self, name) for name in counts})
        wrong += out_of_range({"dense_layers": self.dense_layers, "seed": self.seed}, minimum=0)
        for name in ("chosen", "top_k"):
            if getattr(self, name) > self.experts:
                wrong.append(f"{name}: must be at most experts ({self.experts})")
        least = max(self.chosen, self.top_k)
        if self.adapted_layers is not None and self.adapted_layers > self.moe_layers:
            wrong.append(f"adapted_layers: must be at most moe_layers ({self.moe_layers})")
        if any(n_experts < least for n_experts in self.scaling):
            wrong.append(f"scaling: every number must be at least chosen and top_k ({least})")
        if self.hidden % 8 or self.expert_width % 8:
            wrong.append("hidden: must be a multiple of 8, and expert_width too")
        if self.length_tokens >= 1 and self.tokens % self.length_tokens:
            wrong.append(f"tokens: must be a multiple of length_tokens ({self.length_tokens})")
        largest = min(1.0, self.chosen / max(self.top_k, 1))
        if self.chosen_share is not None and not 0 < self.chosen_share <= largest:
            wrong.append(f"chosen_share: must be above 0 and at most {largest:g} (chosen / top_k, or 1)")
        if not self.contestants or len(set(self.contestants)) < len(self.contestants):
            wrong.append("contestants: must name at least one, and each once")
        if self.scaling and not set(PAIR) <= set(self.contestants):
            wrong.append(f"scaling: needs {' and '.join(PAIR)} among the contestants")
        return wrong


class Worker:
    """One contestant in a process of its own; it computes when asked and waits otherwise."""

    def __init__(self, config: BenchConfig, contestant: str, n_experts: int) -> None:
        self.contestant = contestant
        # The variable is read when OpenMP starts; torch is told the same number later.
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
        line = [sys.executable, "-m", "finetune.benching.bench_worker"]
        self.process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,  # an interrupt from the keyboard reaches this process, which ends the workers
        )
        self._send({"config": settings_dict(config), "contestant": contestant, "n_experts": n_experts})

    def answer(self) -> dict[str, Any]:
        """Wait for the worker's next answer.

        Raises: UserError when it failed or was killed.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the bench's process of {self.contestant} {_ending(self.process.wait())}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            # The worker chooses the device as the stages do, whose key that is.
            reason = found["error"].replace("base.device", "device")
            raise UserError(f"the bench's process of {self.contestant} failed: {reason}")
        return found

    def steps(self, n: int, with_rate: bool = True) -> dict[str, Any]:
        """Let it take `n` steps, and measure the rate of a large product; returns what they took."""
        self._send({"n_steps": n, "with_rate": with_rate})
        return self.answer()

    def stop(self) -> None:
        """End it; the memory is free afterwards."""
        self.process.kill()
        self.process.communicate()

    def _send(self, body: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(body) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended; reading its answer says why


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """Measure every contestant of `config` and return the report.

    Raises:
        UserError: a contestant cannot be built or its process ended.
    """
    is_missing = importlib.util.find_spec("trl") is None
    contestants = [name for name in config.contestants if not (name == "trl_peft_all" and is_missing)]
    left_out = {name: TRL_MISSING for name in config.contestants if name not in contestants}
    machine = {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }
    with _workers(config, contestants, config.experts) as workers:
        facts = {}
        for name in contestants:
            try:
                facts[name] = workers[name].answer()
            except UserError as error:
                if name != "trl_peft_all":
                    raise
                left_out[name] = str(error)  # another release of TRL must not cost the rest
                workers.pop(name).stop()
        bar = tqdm(range(config.rounds), desc="rounds", mininterval=1.0)
        rounds = [_round(workers, number, config.steps_per_round) for number in bar]
    by_experts = _scaling(config) if config.scaling else {}
    machine["load_after"] = os.getloadavg()[0]
    return {
        "settings": settings_dict(config),
        "machine": machine,
        "left_out": left_out,
        **summarise(facts, rounds, by_experts),
    }


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises: UserError when there is none of that name.
    """
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise UserError(f"there is no preset {name!r}: presets are {', '.join(names)}; or give --config FILE")
    return PRESETS / f"{name}.yaml"


@contextmanager
def _workers(config: BenchConfig, contestants: Sequence[str], n_experts: int) -> Iterator[dict[str, Worker]]:
    """Start a process for each contestant, all at once; end them when done."""
    workers: dict[str, Worker] = {}
    try:
        for name in contestants:
            workers[name] = Worker(config, name, n_experts)
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM unwinds this process as an interrupt does, so that the workers are ended with it."""

    def unwind(_number: int, _frame: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    former = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _round(
    workers: Mapping[str, Worker], number: int, n_steps: int, with_rate: bool = True
) -> dict[str, dict[str, Any]]:
    """What the steps of each contestant took, one contestant after the other."""
    # There and back again: who comes later in a round is not always the same.
    order = list(workers) if number % 2 == 0 else list(workers)[::-1]
    return {name: workers[name].steps(n_steps, with_rate) for name in order}


def _scaling(config: BenchConfig) -> dict[int, list[dict[str, Any]]]:
    """Number of experts -> rounds of the pair whose difference is the price of LoRA on chosen experts.

    The difference is a few hundredths of a step, so it is taken between single steps, next to each other.
    """
    found = {}
    for n_experts in sorted({config.experts, *config.scaling}):
        with _workers(config, PAIR, n_experts) as workers:
            for worker in workers.values():
                worker.answer()
            n_rounds = config.rounds * config.steps_per_round
            bar = tqdm(range(n_rounds), desc=f"{n_experts} experts", mininterval=1.0)
            found[n_experts] = [_round(workers, number, 1, with_rate=False) for number in bar]
    return found


def _ending(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return (
            "was killed; if nobody did, the machine ran out of memory: "
            "name fewer contestants, or fewer experts or layers"
        )
    return f"ended with exit code {exit_code}; its message stands above"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    """`[--preset NAME | --config FILE] [--json FILE] [key=value ...]`: measure, print a table, keep it."""
    parser = argparse.ArgumentParser(
        prog="local-experts bench", description="what expert LoRA costs, beside attention LoRA alone and PEFT"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", default="cpu", metavar="NAME", help="a file of configs/bench (cpu)")
    which.add_argument("--config", metavar="FILE", help="a file of your own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers, and a plot beside them")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as dtype=bfloat16 'scaling=[512]'")
    arguments = parser.parse_intermixed_args(argv)
    config = load_settings(
        BenchConfig, arguments.config or preset_path(arguments.preset), arguments.overrides
    )
    if arguments.json and arguments.json.suffix != ".json":
        raise UserError(
            f"--json {arguments.json}: give a name that ends in .json; the plot gets its name too"
        )
    with _terminable():
        report = run_bench(config)
    print(table(report))
    if arguments.json:
        write_artefact(arguments.json, "bench", {}, report)
        write_plot(report, arguments.json.with_suffix(".svg"))
        print(f"\n{arguments.json}, {arguments.json.with_suffix('.svg')}")
    return 0
