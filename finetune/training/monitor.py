"""What is told while training runs: progress, one line of metrics.jsonl a step, trackers, the sum at the end.

Writes metrics.jsonl, from the first process alone.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from accelerate import Accelerator
from tqdm import tqdm

from finetune.batches import Example

SECONDS_BETWEEN_LINES = 10  # of a progress bar that goes to a file or a notebook, where every update stays


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
    row_order_sha256: str  # of the row ids of each step, in order: equal for runs that trained on the same
    seed: int


class Monitor:
    """Keeps the numbers of a run and tells them."""

    def __init__(self, accelerator: Accelerator, metrics_path: Path | None, n_steps: int) -> None:
        self.accelerator, self.metrics_path = accelerator, metrics_path
        if metrics_path is not None:
            metrics_path.unlink(missing_ok=True)
        self.losses: list[float] = []
        self.step_times: list[float] = []
        self.n_tokens, self.row_order = 0, hashlib.sha256()
        self.started = self.step_started = time.perf_counter()
        self.progress = tqdm(
            total=n_steps,
            desc="train",
            disable=not accelerator.is_main_process,
            mininterval=SECONDS_BETWEEN_LINES if not sys.stderr.isatty() else 0.1,
        )

    def step_begins(self, examples: Sequence[Example]) -> None:
        """Start the clock of a step on these rows."""
        self.step_started = time.perf_counter()
        self.row_order.update(json.dumps([example.row_id for example in examples]).encode())
        self.step_tokens = sum(len(example.tokens) for example in examples)

    def step_ends(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> None:
        """Note and tell the numbers of `step` (from 0)."""
        self.losses.append(loss)
        self.n_tokens += self.step_tokens
        self.step_times.append(time.perf_counter() - self.step_started)
        tokens_per_s = self.step_tokens / self.step_times[-1]
        self.progress.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{tokens_per_s:,.0f}", refresh=False)
        self.progress.update()
        numbers = {
            "loss": loss,
            "lr": learning_rate,
            "grad_norm": gradient_norm,
            "tokens_per_s": tokens_per_s,
            "step_time_s": self.step_times[-1],
        }
        self.log(step, numbers)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and hand the numbers to the trackers; `step` counts from 0."""
        numbers = {"step": step + 1, **numbers}
        if self.metrics_path is not None and self.accelerator.is_main_process:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(numbers) + "\n")
        self.accelerator.log(numbers, step=step + 1)

    def result(self, n_trainable: int, seed: int) -> TrainResult:
        """End the run's clock and return what it came to."""
        self.progress.close()
        seconds = time.perf_counter() - self.started
        return TrainResult(
            steps=len(self.losses),
            seconds=seconds,
            tokens=self.n_tokens,
            first_loss=self.losses[0],
            last_loss=self.losses[-1],
            n_trainable=n_trainable,
            tokens_per_s=self.n_tokens / seconds,
            step_time_s=median(self.step_times),
            row_order_sha256=self.row_order.hexdigest(),
            seed=seed,
        )
