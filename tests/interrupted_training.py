"""Trainings that crash in the middle, here or in processes of their own (killed_training.py)."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_training import end, start, train_by_command
from test_train import PLAN, chat_rows, train_config, write_run_inputs
from torch.optim.optimizer import register_optimizer_step_post_hook

from data_recipes.artefact import write_json
from data_recipes.settings import settings_dict
from finetune.adapters.adapter import adapter_state, attach
from finetune.checkpoints.checkpoints import Checkpoints
from finetune.config import LoraConfig, RunConfig
from finetune.train import train_rows, train_stage
from finetune.training_options import CheckpointConfig

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.2, attention=True)
EVERY_TWO = CheckpointConfig(every_steps=2, every_minutes=None)


class Crash(Exception):
    """What ends a training in the middle."""


@contextmanager
def after_optimizer_step(number: int, action: Any) -> Iterator[None]:
    """Inside, `action()` is called when the optimizer has made its `number`-th step (from 1)."""
    counted = iter(range(1, 1000))
    handle = register_optimizer_step_post_hook(lambda *_: action() if next(counted) == number else None)
    try:
        yield
    finally:
        handle.remove()


def crash() -> None:
    raise Crash


class Training:
    """One training of a fresh tiny model, with everything it leaves."""

    def __init__(self, model_factory: Any, tokenizer: Any, folder: Path) -> None:
        self.model_factory, self.tokenizer, self.folder = model_factory, tokenizer, folder
        self.rows = chat_rows(24)
        self.optimizers: list[torch.optim.Optimizer] = []

    def run(self, options: CheckpointConfig = EVERY_TWO, **changes: Any) -> None:
        """Train for nine steps, going on from what is in the folder."""
        model = self.model_factory(vocab_size=262)
        attach(model, PLAN, LORA, seed=0)
        config = train_config(steps=9, weight_decay=0.1, **changes)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", options, {"train.steps": 9})
        seen = register_optimizer_step_post_hook(lambda optimizer, *_: self.optimizers.append(optimizer))
        try:
            self.result = train_rows(
                model,
                self.tokenizer,
                self.rows,
                config,
                3,
                self.rows[:6],
                self.folder / "metrics.jsonl",
                checkpoints=self.checkpoints,
            )
        finally:
            seen.remove()
        self.adapter = adapter_state(model)

    def optimizer_state(self) -> list[dict[str, torch.Tensor]]:
        """The state of each parameter, in the optimizer's order."""
        state = self.optimizers[-1].state_dict()["state"]
        return [state[number] for number in sorted(state)]

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl without times."""
        return lines_without_times(self.folder / "metrics.jsonl")


def lines_without_times(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = ("tokens_per_s", "step_time_s", "time_left_s", "memory_bytes")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def save_run(model: Any, tokenizer: Any, folder: Path, rows: Any = None) -> RunConfig:
    """Put a run on disk that saves every two of its steps, with its config in `folder`/config.yaml."""
    config = write_run_inputs(folder, model, tokenizer, rows)
    train = replace(config.train, steps=12, checkpoint=EVERY_TWO)
    config = replace(config, train=train, lora=LORA)
    write_json(folder / "config.yaml", settings_dict(config))  # JSON is YAML
    return config


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "run/adapter/adapter.safetensors").read_bytes()


def crashed(config: RunConfig) -> None:
    """Train until the fifth step, of which nothing is saved."""
    with after_optimizer_step(5, crash), pytest.raises(Crash):
        train_stage(config)


def train_in_two_processes(folder: Path, *changes: Any) -> tuple[list[int | None], str]:
    """Train in two processes; returns their exit codes and all that both wrote to stdout and stderr."""
    options = (*changes, "train.n_processes=2")
    codes = end(start(folder, train_by_command, folder / "config.yaml", options, n_processes=2))
    return codes, told_by_both(folder)


def told_by_both(folder: Path) -> str:
    """What both processes wrote to stdout and stderr."""
    return "".join((folder / f"log-{rank}").read_text() for rank in range(2))


def wait_for(found: Any) -> Any:
    """The first true value that `found()` gives."""
    deadline = time.monotonic() + 100
    while not (value := found()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value
