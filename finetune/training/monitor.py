"""What is told while training runs: progress, one line of metrics.jsonl a step, trackers, the sum at the end.

Writes metrics.jsonl, from the first process alone.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator

from data_recipes.progress import progress_bar
from finetune.batches import Example
from finetune.processes import gather
from finetune.training.memory_use import memory_bytes
from finetune.training.trackers import numbers_for_trackers


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to; losses are nats per trained token."""

    steps: int
    seconds: float
    tokens: int  # read, padding left out
    first_loss: float
    last_loss: float
    n_trainable: int
    tokens_per_s: float
    step_time_s: float  # median over the optimizer steps, without evaluation
    # Of the row ids of each step, each time over the former hash: equal for runs that trained on the same
    row_order_sha256: str
    seed: int
    padding_share: float  # of all that was read
    rows_by_group: dict[str, int]  # by the value of train.mixture_by, and "replay"
    tokens_by_group: dict[str, int]  # read, padding left out
    peak_memory_bytes: int  # held by the process that held most (memory_use.py)
    lowest_eval_loss: dict[str, float]  # by group of validation rows
    lowest_eval_step: dict[str, int]
    adapter_step: int  # steps behind the adapter: that of the lowest loss with train.keep_best
    stopped_early: bool


class Monitor:
    """Keeps the numbers of a run and tells them."""

    def __init__(self, accelerator: Accelerator, metrics_path: Path | None, n_steps: int) -> None:
        self.accelerator, self.metrics_path = accelerator, metrics_path
        if metrics_path is not None:
            metrics_path.unlink(missing_ok=True)
        self.losses: list[float] = []
        self.step_times: list[float] = []
        self.n_tokens, self.n_positions, self.row_order_sha256 = 0, 0, ""
        self.rows_by_group: Counter[str] = Counter()
        self.tokens_by_group: Counter[str] = Counter()
        self.started = self.step_started = time.perf_counter()
        self.peak_memory_bytes = 0  # of this process
        self.n_steps = n_steps
        self.shown_load: dict[str, str] = {}
        self.progress = progress_bar(total=n_steps, desc="train", disable=not accelerator.is_main_process)

    def step_begins(self, examples: Sequence[Example], n_positions: int) -> None:
        """Start the clock of a step on these rows; `n_positions` are their tokens and padding."""
        self.step_started = time.perf_counter()
        ids = json.dumps([example.row_id for example in examples])
        # A chain, for a run that goes on: the state of a hash under way cannot be saved.
        self.row_order_sha256 = hashlib.sha256((self.row_order_sha256 + ids).encode()).hexdigest()
        self.step_tokens = sum(len(example.tokens) for example in examples)
        self.step_positions = n_positions
        for example in examples:
            self.rows_by_group[example.group] += 1
            self.tokens_by_group[example.group] += len(example.tokens)

    def step_ends(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        gradient_norm: float,
        load: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Note and tell the numbers of `step` (from 0); `load` are those of the experts, when counted."""
        self.losses.append(loss)
        self.n_tokens += self.step_tokens
        self.n_positions += self.step_positions
        self.step_times.append(time.perf_counter() - self.step_started)
        tokens_per_s = self.step_tokens / self.step_times[-1]
        memory_now, memory_peak = memory_bytes(self.accelerator.device)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory_peak)
        time_left_s = (time.perf_counter() - self.started) / (step + 1) * (self.n_steps - step - 1)
        if load:
            self.shown_load = {"chosen": f"{load['chosen_share']:.0%}"}
        shown = {"loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_s:,.0f}", "GB": f"{memory_now / 1e9:.1f}"}
        self.progress.set_postfix({**shown, **self.shown_load}, refresh=False)
        self.progress.update()
        numbers = {
            "loss": loss,
            "lr": learning_rate,
            "grad_norm": gradient_norm,
            "tokens_per_s": tokens_per_s,
            "step_time_s": self.step_times[-1],
            "padding_share": 1 - self.step_tokens / self.step_positions,
            "time_left_s": time_left_s,
            "memory_bytes": memory_now,
        }
        self.log(step, {**numbers, **load})

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and hand the numbers to the trackers; `step` counts from 0."""
        numbers = {"step": step + 1, **numbers}
        if self.metrics_path is not None and self.accelerator.is_main_process:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(numbers) + "\n")
        self.accelerator.log(numbers_for_trackers(numbers), step=step + 1)

    def state(self) -> dict[str, Any]:
        """What a run that goes on has to know of the steps so far, as JSON."""
        return {
            "losses": self.losses,
            "step_times": self.step_times,
            "n_tokens": self.n_tokens,
            "n_positions": self.n_positions,
            "rows_by_group": dict(self.rows_by_group),
            "tokens_by_group": dict(self.tokens_by_group),
            "row_order_sha256": self.row_order_sha256,
            "seconds": time.perf_counter() - self.started,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def restore(self, state: Mapping[str, Any], metrics: Path) -> None:
        """Go on from a `state`, with the lines of metrics.jsonl that were told until then."""
        self.losses, self.step_times = list(state["losses"]), list(state["step_times"])
        self.n_tokens, self.row_order_sha256 = state["n_tokens"], state["row_order_sha256"]
        self.n_positions = state["n_positions"]
        self.rows_by_group = Counter(state["rows_by_group"])
        self.tokens_by_group = Counter(state["tokens_by_group"])
        self.started = time.perf_counter() - state["seconds"]
        self.peak_memory_bytes = state.get("peak_memory_bytes", 0)  # older checkpoints have none
        self.progress.n = self.progress.initial = len(self.losses)
        if self.metrics_path is not None and self.accelerator.is_main_process and metrics.exists():
            shutil.copyfile(metrics, self.metrics_path)

    def result(self, n_trainable: int, seed: int, validated: Mapping[str, Any]) -> TrainResult:
        """End the run's clock and return what it came to; all processes call this.

        `validated` are the numbers of the evaluations (`Validation.outcome`).
        """
        self.progress.close()
        seconds = time.perf_counter() - self.started
        peak = max(self.peak_memory_bytes, memory_bytes(self.accelerator.device)[1])
        return TrainResult(
            steps=len(self.losses),
            seconds=seconds,
            tokens=self.n_tokens,
            first_loss=self.losses[0],
            last_loss=self.losses[-1],
            n_trainable=n_trainable,
            tokens_per_s=self.n_tokens / seconds,
            step_time_s=median(self.step_times),
            row_order_sha256=self.row_order_sha256,
            seed=seed,
            padding_share=1 - self.n_tokens / self.n_positions,
            rows_by_group=dict(sorted(self.rows_by_group.items())),
            tokens_by_group=dict(sorted(self.tokens_by_group.items())),
            peak_memory_bytes=max(gather(self.accelerator, peak)),
            **validated,
        )
